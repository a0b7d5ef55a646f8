"""Files are read again when they change."""

from pathlib import Path

from services.runtime.reloading_files import ReloadingFiles
from tests.support.certificates import replace


def test_watched_files_are_read_only_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    watched = ReloadingFiles(path)
    first = watched.read()
    assert watched.read() is first
    replace(path, b"2")
    assert watched.read() == (b"2",)
