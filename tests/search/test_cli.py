"""The command line as people meet it: a process, its output and its exit code."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.cli import main
from spaces import load_policy, scheme

TINY = [
    *("--set", "data.student_images=40"),
    *("--set", "teacher={width: 4, epochs: 2}"),
    *("--set", "student.recipe.repeats=2"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def augury(cache, tmp_path):
    def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [Path(sys.executable).parent / "augury", *words],
            cwd=tmp_path,
            env={**os.environ, "AUGURY_CACHE": str(cache), "COLUMNS": "160", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    "word",
    ["", "search", "score", "export", "schemes", "policy show", "policy convert", "student export"],
)
def test_help_teaches(augury, word):
    done = augury(*word.split(), "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_version(augury):
    done = augury("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("augury 0.")


def test_schemes_with_their_sources(augury):
    done = augury("schemes")
    assert done.returncode == 0
    assert "trivial_augment" in done.stdout
    assert "arXiv 2103.10158" in done.stdout
    listed = json.loads(augury("schemes", "--json").stdout)
    assert {"name", "summary", "citation"} == set(listed[0])


def wrong_policy(folder: Path) -> str:
    path = folder / "wrong.json"
    path.write_text('{"version": 1, "chains": [{"operations": [{"name": "rotat"}]}]}')
    return str(path)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["search", "--set", "search.trails=3"], "did you mean 'trials'"),
        (["search", "--set", "student.quantization.weight_bits=9"], "less than or equal to 8"),
        (["search", "--set", "data.validation_images=5"], "misses class"),
        (["search", "nowhere.yaml"], "cannot read the config"),
        (["search", "--run", "notes"], "exists and is not a run"),
        (["score", "trivial"], "unknown scheme 'trivial'"),
        (["score", "nowhere.json"], "cannot read the policy file"),
        (["score", "WRONG"], "unknown operation 'rotat': did you mean 'rotate'"),
        (["export", "notes", "--to", "x.csv"], "is not a run"),
        (["score", "no\0where.json"], "cannot read the policy file: embedded null byte"),
        (["policy", "convert", "none", "--to", "timm", "--out", "."], "written: Is a directory"),
        (["policy", "show", "none", "--sheet", "x.txt"], "--sheet x.txt: a contact sheet is a PNG"),
        (["search", "--sett", "a=1"], "No such option"),
    ],
)
def test_a_mistake_gets_one_sentence_exit_code_two_and_nothing_written(
    tmp_path, monkeypatch, capsys, words, sentence
):
    """In this process: a mistake costs no import of torch, and there are many."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    words = [wrong_policy(tmp_path) if word == "WRONG" else word for word in words]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["augury", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert sentence in err
    assert sorted(tmp_path.rglob("*")) == before
    if "option" not in sentence:  # Typer draws its own box around wrong options
        assert err.startswith("augury: ")
        assert len(err.splitlines()) == 1
        assert out == ""


def test_a_mistake_in_a_process_of_its_own(augury):
    done = augury("search", "--set", "search.trails=3")
    assert done.returncode == 2
    assert done.stderr.startswith("augury: unknown key 'trails'")
    assert len(done.stderr.splitlines()) == 1


def test_scores_rank_policies_with_the_teacher_alone(augury, tmp_path):
    scheme("trivial_augment").save(tmp_path / "mine.json")
    done = augury("score", "none", "cutmix", "mine.json", "trivial_augment", "--json", *TINY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["score"] for row in found] == sorted(row["score"] for row in found)
    by_name = {row.pop("policy"): row for row in found}
    assert by_name["mine.json"] == by_name["trivial_augment"]
    assert by_name["cutmix"]["cmi"] > by_name["none"]["cmi"]
    assert by_name["none"]["images"] == 3600
    again = augury("score", "none", "cutmix", "mine.json", "trivial_augment", "--json", *TINY)
    assert again.stdout == done.stdout  # to the last digit, from another process
    table = augury("score", "none", "cutmix", "--quiet", *TINY)
    assert "T.stddev" in table.stdout
    assert table.stderr == ""


def test_a_policy_is_shown_and_converted(augury, tmp_path):
    scheme("rand_augment+cutmix").save(tmp_path / "mine.json")
    shown = augury("policy", "show", "mine.json", "--sheet", "sheet.png", "--rows", "3")
    assert shown.returncode == 0, shown.stderr
    assert "7.1 %  rotate 9 degrees either way" in shown.stdout
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    done = augury("policy", "convert", "mine.json", "--to", "torchvision", "--out", "code.py")
    assert done.returncode == 0, done.stderr
    assert "Parity: 100.00 %" in (tmp_path / "code.py").read_text()
    refused = augury("policy", "convert", "mine.json", "--to", "kornia", "--out", "other.py")
    assert refused.returncode == 2
    assert "kornia cannot express the mixing" in refused.stderr
    assert not (tmp_path / "other.py").exists()


def test_a_search_from_the_command_line_and_its_export(augury, tmp_path):
    done = augury(
        "search",
        *("--run", "run", *TINY),
        *("--set", "search.trials=3", "--set", "search.probe_epochs=1"),
        *("--set", "student.quantization={weight_bits: 4, activation_bits: 8}"),
        *("--set", "promotion={top: 1, epochs: 1, seeds: 1}"),
        *("--set", "cluster.dashboard=false"),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "3/3" in done.stderr
    assert any(line.startswith("1/") and "validation_accuracy" in line for line in lines)
    assert "Verdict" in done.stdout
    assert done.stdout.rstrip().endswith("run/best_policy.json")
    assert load_policy(tmp_path / "run" / "best_policy.json")
    exported = augury("student", "export", "run", "--to", "student.onnx", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["same_class"] > 0.98
    assert (tmp_path / "student.onnx").exists()
    assert augury("export", "run", "--to", "out.csv").returncode == 0
    with (tmp_path / "out.csv").open() as file:
        assert [row["rank"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    again = augury("search", "--run", "run", *TINY)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr


def test_another_package_that_took_a_name_is_told_from_a_bug(augury, tmp_path):
    """A `spaces` of somebody else's lies before ours on the path."""
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "__init__.py").write_text("")
    (tmp_path / "spaces_hub-1.0.dist-info").mkdir()
    (tmp_path / "spaces_hub-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: spaces-hub\nVersion: 1.0\n"
    )
    (tmp_path / "spaces_hub-1.0.dist-info" / "top_level.txt").write_text("spaces\n")
    done = augury("schemes", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "the package 'spaces-hub' took the import name 'spaces'" in done.stderr
    assert "an environment of its own" in done.stderr
