"""The wheel holds three packages and nothing else; the pinned versions fit the ranges."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version


@pytest.fixture(scope="module")
def project(repo_root: Path) -> dict:
    return tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(repo_root: Path) -> dict[str, Version]:
    lines = (repo_root / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): Version(version) for name, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, repo_root],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_three_packages_and_their_metadata(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "search",
        "spaces",
        "trainers",
    }
    assert len(tops) == 4


def test_the_wheel_is_typed_licensed_and_has_its_command(wheel):
    names = set(wheel.namelist())
    assert {f"{room}/py.typed" for room in ("search", "spaces", "trainers")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "augury = search.cli:main" in wheel.read(entry_points).decode()


def test_the_wheel_holds_every_module(wheel, repo_root):
    tracked = {
        path.relative_to(repo_root).as_posix()
        for room in ("search", "spaces", "trainers")
        for pattern in ("*.py", "*.schema.json", "page/*")
        for path in (repo_root / room).rglob(pattern)
    }
    assert tracked <= set(wheel.namelist())


def test_every_dependency_is_pinned_within_its_range(project, pins):
    requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, requirements):
        assert normal(requirement.name) in pins, requirement
        assert requirement.specifier.contains(pins[normal(requirement.name)]), requirement


def test_the_pins_name_no_index(repo_root):
    lines = (repo_root / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines[1:] if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)]
