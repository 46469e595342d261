"""Three rooms, one direction, and only a few doors to Ray."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("spaces", "trainers", "search")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_one_idea_with_a_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert not {"utils", "helpers", "managers", "common", "misc"}.intersection(parts)
    # import-linter does not look into a folder without one.
    assert (path.parent / "__init__.py").exists()
    assert len(path.read_text().splitlines()) <= 400, "a file of more than 400 lines is two ideas"


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_of_import_linter_hold():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("search", "import ray"),  # a new module is no door to Ray
        ("search", "def f():\n    from ray import tune"),
        ("trainers", "import optuna"),
        ("trainers", "from search.config import SearchConfig"),
        ("spaces", "import ray"),
        ("spaces", "import trainers.metric"),
    ],
)
def test_a_newcomer_that_breaks_them_is_caught(room, statement, tmp_path):
    for name in ROOMS:
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / room / "newcomer.py").write_text(f"{statement}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{room}.newcomer" in done.stdout


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import spaces", {"torch", "ray", "optuna"}),
        ("from spaces import load_policy, scheme, PolicySpace", {"ray", "optuna"}),
        ("import trainers.student, trainers.scoring", {"ray", "optuna"}),
        ("import search.cli", {"torch", "ray", "optuna", "pandas", "pyarrow", "matplotlib"}),
    ],
)
def test_heavy_packages_wait_until_they_are_needed(statement, absent):
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not absent & set(done.stdout.split())
