"""Guides that are followed: their files written, their commands and Python run in order, with fewer
and shorter trials than they ask for."""

import json
import shlex
import shutil
from pathlib import Path

import jsonschema
import nbclient
import nbformat
import numpy as np
import pytest
import torch
import typer.main
from pages import ROOT, blocks, commands
from PIL import Image
from sklearn.datasets import load_digits

from search.cli import app
from search.load import load_run
from spaces.policy import json_schema

DOCS = ROOT / "docs"
SETTINGS = [
    *("data.image_size=16", "teacher.epochs=1"),
    *("student.recipe.repeats=1", "student.recipe.batch_size=16"),
    *("search.trials=2", "search.probe_epochs=1", "search.warm_start=[none, cutmix]"),
    *("promotion.epochs=1", "promotion.top=1", "promotion.seeds=1", "cluster.dashboard=false"),
]
SMALLER = [word for setting in SETTINGS for word in ("--set", setting)]
# What is put behind a command, where the last of two values counts.
SHORTER = {
    "search": SMALLER,
    "score": SMALLER,
    "teacher": SMALLER,
    "resume": ["--trials", "3"],
    "promote": ["--top", "1", "--seeds", "2"],
    "validate": ["--schemes", "none,cutmix,mixup,cutout", "--random", "1", "--seeds", "1"],
    "watch": ["--once"],
}


# Minutes in all: they are run where whole guides are followed.
LONG = {"search", "resume", "promote", "validate", "compare", "student"}
GUIDES = ["your-data", "your-network", "policy-format", "faq", "watching"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current folder, whose modules are found."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder


# The cluster comes after the folder, and goes before it: its workers find what the driver finds.
@pytest.fixture(scope="module")
def workplace(folder, cluster):
    """A folder to work in, with the run of the first guide and photos of three classes."""
    digits = load_digits()
    for number in range(120):
        photo = folder / "photos" / f"class{number % 3}" / f"{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        pixels = (16 * digits.images[number]).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(photo)
    (folder / "configs").symlink_to(ROOT / "configs")
    call(["search", "--run", "runs/first"])
    return folder


def follow(page: str, names: dict[str, object] | None = None, *, whole: bool) -> None:
    """Does in the current folder what the page says, without what takes long unless `whole`."""
    names = {} if names is None else names
    for block in blocks(ROOT / page):
        if block.file:
            Path(block.file).write_text(block.code)
        elif block.language == "python":
            exec(compile(block.code, page, "exec"), names)
        elif block.language == "console":
            for line in commands(block):
                words = shlex.split(line, comments=True)[1:]
                if whole or words[0] not in LONG:
                    call(words)


def call(words: list[str]) -> None:
    """`augury` with these words, unless they need what is not here."""
    command = words[0]
    outside = any("://" in word or "cifar10" in word for word in words)
    served = command == "optuna" and "--to" not in words
    if outside or served or command in ("submit", "status", "fetch"):
        return
    words = [*words, *SHORTER.get(command, [])]
    assert typer.main.get_command(app).main(words, standalone_mode=False) in (None, 0), words


@pytest.mark.slow
def test_what_the_first_guide_shows_of_a_run(workplace):
    follow("docs/quick-start.md", whole=False)
    for name in ("first.html", "sheet.png", "policies.csv", "augment.py"):
        assert (workplace / name).stat().st_size > 500
    run = load_run("runs/first")
    assert len(run.policies) >= 2
    html = run._repr_html_()  # what a notebook shows
    assert run.verdict["sentence"] in html and html.count("<tr") == 1 + len(run.policies)


@pytest.mark.parametrize("page", GUIDES)
def test_what_takes_no_search_in_a_guide(workplace, page):
    follow(f"docs/{page}.md", whole=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", ["quick-start", *GUIDES, "metric"])
def test_a_whole_guide(workplace, page):
    if page == "quick-start":
        shutil.rmtree(workplace / "runs")  # that of the fixture is in its way
    follow(f"docs/{page}.md", whole=True)
    if page == "quick-start":
        (first, *_) = load_run("runs/first").verdict["candidates"]
        assert len(first["seeds"]) == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_readme(workplace):
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    shutil.copy("runs/first/best_policy.json", ".")
    follow("README.md", {"images": images, "labels": torch.arange(8)}, whole=True)


def test_the_format_that_is_shown_is_that_of_the_schema():
    (example,) = [b.code for b in blocks(DOCS / "policy-format.md") if b.language == "json"]
    jsonschema.validate(json.loads(example), json_schema())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=where).execute()
    shown = [data for cell in notebook.cells for data in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 3
