"""Documentation that is executed: links, commands, Python."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from search.cli import app
from search.config import load_config
from search.table import to_table, write_parquet
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
    joined = [code.replace("\\\n", " ") for _, code in blocks("console") + blocks("sh")]
    lines = [line for code in joined for line in code.splitlines()]
    lines = [line.removeprefix("$ ") for line in lines]
    return [line for line in lines if line.startswith("augury ")]


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
    write_parquet(to_table([], {"score": "min"}, {}), tmp_path / "runs" / "w4" / "policies.parquet")
    subprocess.run([sys.executable, "-W", "error", "-c", PREAMBLE + code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("content", [content for _, content in blocks("yaml")])
def test_yaml_in_the_documentation_is_a_config(content, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_documentation_parse(line):
    """By the real parser, so that arguments and types count as well as names."""
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
