"""What tests share: patience on a busy machine, and one finished small round."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from tests.small_round import at, new_workspace

settings.register_profile("patient", parent=settings.default, deadline=None)
settings.load_profile("patient")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace in which nothing has run."""
    return new_workspace(tmp_path / "ws")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose first round is finished; not to be changed."""
    folder = new_workspace(tmp_path_factory.mktemp("finished") / "ws")
    ended = at(folder, "round", "1")
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "ws")
    return tmp_path / "ws"
