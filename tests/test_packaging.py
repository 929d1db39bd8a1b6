"""The wheel: what an install holds, and that it works from anywhere without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from posttrain.workspace import FOLDERS

ROOT = Path(__file__).parent.parent
PARTS = ("posttrain", *FOLDERS, "pyproject.toml", "README.md", "LICENSE")
IGNORED = shutil.ignore_patterns("__pycache__", ".*")
HEAVY = ["torch", "transformers", "trl", "vllm", "datasets", "sentence_transformers", "matplotlib"]
LOADED = f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"


def call(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the source distribution of a clean copy."""
    source = tmp_path_factory.mktemp("source")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=IGNORED)
        else:
            shutil.copyfile(ROOT / part, source / part)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", cwd=source)
    found = list((source / "dist").glob("*.whl"))
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the installed copy comes before any other."""
    target = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    call(*pip, "--target", str(target), str(wheel), cwd=target)
    env = {**os.environ, "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    code = "import posttrain; print(posttrain.__file__)"
    where = call(sys.executable, "-c", code, cwd=Path("/"), env=env).strip()
    assert where == str(target / "posttrain" / "__init__.py")
    return env


@pytest.fixture(scope="module")
def workspace(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the installed `posttrain init` makes."""
    folder = tmp_path_factory.mktemp("user") / "ws"
    call(sys.executable, "-m", "posttrain", "init", str(folder), cwd=Path("/"), env=installed)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file that is no cache, by name."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not any(p.startswith((".", "__pycache__")) for p in name.parts):
            found[str(name)] = path.read_bytes()
    return found


def test_the_wheel_holds_the_package_and_the_three_folders_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"posttrain/{name}" for name in files_of(ROOT / "posttrain")}
    for folder in FOLDERS:
        expected |= {f"posttrain/_library/{folder}/{name}" for name in files_of(ROOT / folder)}
    assert names == expected


@pytest.mark.parametrize("folder", FOLDERS)
def test_init_copies_every_file_as_it_stands_in_the_checkout(workspace: Path, folder: str) -> None:
    assert files_of(workspace / folder) == files_of(ROOT / folder)


def test_check_of_the_tiny_plan_passes_from_anywhere(
    installed: dict[str, str], workspace: Path
) -> None:
    command = ("check", "--plan", "tiny", "--json", "--workspace", str(workspace))
    out = call(sys.executable, "-m", "posttrain", *command, cwd=Path("/"), env=installed)
    checked = json.loads(out)["checked"]
    assert "in 6 rounds" in checked["steps"]
    assert checked["model"].startswith("rounds/tiny/base: context of 256 tokens")


def test_what_a_workspace_lacks_comes_out_of_the_wheel(
    installed: dict[str, str], workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "rounds").mkdir()
    shutil.copyfile(workspace / "rounds" / "tiny.yaml", tmp_path / "rounds" / "mine.yaml")
    out = call(
        sys.executable, "-m", "posttrain", "plan", "1", "--json", cwd=tmp_path, env=installed
    )
    assert {step["state"] for step in json.loads(out)} == {"to run"}
    out = call(
        sys.executable, "-m", "posttrain", "recipes", "show", "math", cwd=tmp_path, env=installed
    )
    assert f"{installed['PYTHONPATH']}/posttrain/_library/recipes/math (shipped)" in out


def test_the_installed_command_tells_its_version(installed: dict[str, str]) -> None:
    script = Path(installed["PYTHONPATH"]) / "bin" / "posttrain"
    out = call(sys.executable, str(script), "--version", cwd=Path("/"), env=installed)
    assert out.startswith("posttrain 0.")


@pytest.mark.parametrize(
    "command", ["--help", "plan 1 --plan tiny", "status --plan tiny", "recipes ls", "schema"]
)
def test_commands_that_only_look_load_nothing_heavy(tmp_path: Path, command: str) -> None:
    code = (
        "import io, json, sys\n"
        "from contextlib import redirect_stdout, suppress\n"
        "from posttrain.cli.main import main\n"
        "with suppress(SystemExit), redirect_stdout(io.StringIO()) as out: main()\n"
        "assert out.getvalue()\n" + LOADED
    )
    (tmp_path / "rounds").mkdir()
    shutil.copyfile(ROOT / "rounds" / "tiny.yaml", tmp_path / "rounds" / "tiny.yaml")
    loaded = call(sys.executable, "-c", code, *command.split(), cwd=tmp_path)
    assert json.loads(loaded) == []


def test_no_module_of_the_words_or_the_disk_is_heavy(tmp_path: Path) -> None:
    modules = (
        "rows tables workspace hooks generation planning controller settings.plan "
        "judgments.preferences judgments.simulated steps.run_folder steps.worker "
        "annotate.collection"
    )
    imports = "".join(f"import posttrain.{name}\n" for name in modules.split())
    loaded = call(sys.executable, "-c", f"import json, sys\n{imports}{LOADED}", cwd=tmp_path)
    assert json.loads(loaded) == []
