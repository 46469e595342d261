"""Guides that are followed: their files written, their commands and Python run in order, with fewer
and shorter trials than they ask for."""

import json
import re
import shlex
from pathlib import Path

import jsonschema
import nbclient
import nbformat
import numpy as np
import pytest
import typer.main
from PIL import Image
from sklearn.datasets import load_digits

from search.cli import app
from search.load import load_run
from spaces.policy import json_schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`(\w+\.(?:json|py|yaml))`[^`]*:\s*$")  # the file that a block is to be saved as

SETTINGS = [
    *("data.image_size=16", "teacher.epochs=1", "student.recipe.repeats=1", "student.recipe.batch_size=16"),
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


@pytest.fixture(scope="module")
def workplace(request, tmp_path_factory):
    """A folder to work in, as the first guide left it, beside photos of three classes."""
    folder = tmp_path_factory.mktemp("workplace")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.syspath_prepend(folder)
    request.getfixturevalue("cluster")  # whose workers find modules where the driver does
    digits = load_digits()
    for number in range(120):
        photo = folder / "photos" / f"class{number % 3}" / f"{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        pixels = (16 * digits.images[number]).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(photo)
    (folder / "configs").symlink_to(ROOT / "configs")
    follow(DOCS / "quick-start.md")
    yield folder
    patch.undo()


def follow(page: Path, names: dict[str, object] | None = None) -> None:
    """Does what the page says, in the current folder."""
    text = page.read_text()
    names = {"__name__": "__guide__"} if names is None else names
    for block in BLOCK.finditer(text):
        language, content = block.groups()
        if name := NAMED.search(text[: block.start()].rstrip()):
            Path(name[1]).write_text(content)
        elif language == "python":
            exec(compile(content, page.name, "exec"), names)
        elif language == "console":
            for line in content.replace("\\\n", " ").splitlines():
                if line.startswith("$ augury "):
                    call(shlex.split(line.removeprefix("$ augury "), comments=True))


def call(words: list[str]) -> None:
    """`augury` with these words, unless they need what is not here."""
    command = words[0]
    outside = any("://" in word or "cifar10" in word for word in words)
    served = command == "optuna" and "--to" not in words
    if outside or served or command in ("submit", "status", "fetch"):
        return
    words = [*words, *SHORTER.get(command, [])]
    assert typer.main.get_command(app).main(words, standalone_mode=False) in (None, 0), words


def test_the_first_guide_leaves_what_it_says(workplace):
    for name in ("first.html", "sheet.png", "policies.csv", "augment.py"):
        assert (workplace / name).stat().st_size > 1000
    run = load_run("runs/first")
    assert len(run.policies) >= 3 and len(run.verdict["candidates"][0]["seeds"]) == 2


@pytest.mark.parametrize("page", ["your-data", "your-network", "policy-format", "faq", "watching"])
def test_a_guide_can_be_followed(workplace, page):
    follow(DOCS / f"{page}.md")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/metric.md", "README.md"])
def test_a_page_of_many_searches_can_be_followed(workplace, page):
    import torch

    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    (workplace / "best_policy.json").write_bytes(Path("runs/first/best_policy.json").read_bytes())
    follow(ROOT / page, {"images": images, "labels": torch.arange(8)})


def test_the_format_that_is_shown_is_that_of_the_schema():
    (example,) = [
        content
        for language, content in BLOCK.findall((DOCS / "policy-format.md").read_text())
        if language == "json"
    ]
    jsonschema.validate(json.loads(example), json_schema())


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(
        notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
