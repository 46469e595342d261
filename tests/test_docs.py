"""Documentation that is executed: links, commands, Python. Guides are followed in
tests/search/test_guides.py."""

import re
import shlex
import subprocess
import sys

import pytest
import typer.main
from pages import FENCE, ROOT, blocks, commands

from search.cli import app
from search.config import load_config
from search.table import to_table, write_parquet
from spaces import scheme

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCKS = [(page, block) for page in PAGES for block in blocks(page)]
ON_THEIR_OWN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs/policies-parquet.md"]
PREAMBLE = """
import torch
images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
labels = torch.arange(8) % 10
"""


def shown(language: str) -> list[str]:
    return [block.code for _, block in BLOCKS if block.language == language]


COMMANDS = [
    line for _, block in BLOCKS if block.language in ("console", "sh") for line in commands(block)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), target


def test_the_documentation_shows_python_and_commands():
    assert {page for page, block in BLOCKS if block.language == "python"} >= {*ON_THEIR_OWN}
    assert {"search", "score", "export", "schemes"} <= {line.split()[1] for line in COMMANDS}


@pytest.mark.parametrize(
    "code", [b.code for page, b in BLOCKS if b.language == "python" and page in ON_THEIR_OWN]
)
def test_python_in_the_documentation_runs(code, tmp_path):
    scheme("trivial_augment+cutmix").save(tmp_path / "best_policy.json")
    write_parquet(to_table([], {"score": "min"}, {}), tmp_path / "runs" / "w4" / "policies.parquet")
    subprocess.run([sys.executable, "-W", "error", "-c", PREAMBLE + code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("content", shown("yaml"))
def test_yaml_in_the_documentation_is_a_config(content, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    load_config(tmp_path / "config.yaml")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the configs, and with what the pages say to save."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "configs").symlink_to(ROOT / "configs")
    for _, block in BLOCKS:
        if block.file:
            (folder / block.file).write_text(block.code)
    return folder


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_in_the_documentation_parse(line, saved, monkeypatch):
    """By the real parser, so that arguments and types count as well as names."""
    monkeypatch.chdir(saved)
    name, *words = shlex.split(line, comments=True)[1:]
    group = typer.main.get_command(app)
    if name.startswith("-"):
        assert name in {option for parameter in group.params for option in parameter.opts}
        return
    command = group.commands[name]
    while hasattr(command, "commands"):  # a group, such as `augury policy`
        command, words = command.commands[words[0]], words[1:]
    given = command.make_context(name, words).params
    load_config(given.get("config"), given.get("overrides") or ())
