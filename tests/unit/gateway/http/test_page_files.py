from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Route

from gateway.http import page_files


def test_each_file_has_a_route_of_its_own(tmp_path: Path) -> None:
    for name in ("index.html", "page.js"):
        (tmp_path / name).write_text(name)
    routes = page_files.routes(tmp_path)
    assert [route.path for route in routes if isinstance(route, Route)] == ["/", "/page.js"]
    assert Starlette(routes=routes)


def test_the_page_may_load_nothing_from_elsewhere() -> None:
    assert "default-src 'none'" in page_files.POLICY
    assert "http" not in page_files.POLICY
    assert "unsafe" not in page_files.POLICY
