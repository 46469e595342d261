"""Three rooms, one direction, and only a few doors to Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("spaces", "trainers", "search")
MAY_IMPORT_RAY = {
    f"search/{name}.py" for name in ("trainable", "explore", "promote", "cluster", "telemetry")
}
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(source: str) -> set[str]:
    """Top-level packages that a module imports anywhere; relative imports as '.'."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").partition(".")[0])
    return found


def test_the_check_below_sees_imports_wherever_they_hide():
    source = "def f():\n    from ray.tune import x\n    import numpy as np, optuna.trial\n"
    assert imported(source) == {"ray", "numpy", "optuna"}
    assert imported("from . import x") == {"."}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_keeps_the_rules_of_the_house(path):
    source = path.read_text()
    packages = imported(source)
    assert "." not in packages, "imports are absolute"
    if name(path) not in MAY_IMPORT_RAY:
        assert "ray" not in packages, f"only {sorted(MAY_IMPORT_RAY)} import ray"
    if not name(path).startswith("search/"):
        assert "optuna" not in packages
    assert path.stem not in {"utils", "helpers", "managers", "common", "misc"}
    assert len(source.splitlines()) <= 400, "a file of more than 400 lines is two ideas"


def test_layers_by_import_linter():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import spaces", {"torch", "ray", "optuna"}),
        ("from spaces import load_policy, scheme, PolicySpace", {"ray", "optuna"}),
        ("import trainers.student, trainers.scoring", {"ray", "optuna"}),
        ("import search.cli", {"torch", "ray", "optuna", "pandas", "pyarrow"}),
    ],
)
def test_heavy_packages_wait_until_they_are_needed(statement, absent):
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not absent & set(done.stdout.split())
