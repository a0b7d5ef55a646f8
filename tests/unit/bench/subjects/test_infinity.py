from pathlib import Path

import pytest

from bench.subjects import MissingError
from bench.subjects.infinity import install


def test_what_cannot_be_installed_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(MissingError, match="cannot be installed") as error:
        install(tmp_path / "environment")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "environment" / ".installed").exists()
