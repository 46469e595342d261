"""Documentation that is executed: links, commands, Python."""

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main

from search.cli import app
from search.config import load_config
from spaces import scheme

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PREAMBLE = """
import torch
images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
labels = torch.arange(8) % 10
"""


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (page.name, code)
        for page in PAGES
        for found, code in FENCE.findall(page.read_text())
        if found == language
    ]


def commands() -> list[str]:
    lines = [line for _, code in blocks("console") for line in code.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ augury")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), target


def test_the_documentation_shows_python_and_commands():
    assert any(page == "README.md" for page, _ in blocks("python"))
    assert {"search", "score", "export", "schemes"} <= {c.split()[1] for c in commands()}


@pytest.mark.parametrize("code", [code for _, code in blocks("python")])
def test_python_in_the_documentation_runs(code, tmp_path):
    scheme("trivial_augment+cutmix").save(tmp_path / "best_policy.json")
    subprocess.run([sys.executable, "-W", "error", "-c", PREAMBLE + code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_documentation_exist_with_their_options(line):
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    if words[0] in command.commands:
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in options, line
    overrides = [value for flag, value in pairwise(words) if flag == "--set"]
    load_config(overrides=overrides)
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).exists(), line
