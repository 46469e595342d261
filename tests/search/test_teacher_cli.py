"""`augury teacher` and `augury student` as people meet them: words in, files and exit codes out."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from search.cli import main
from search.config import SearchConfig, load_config
from search.run_folder import RunFolder
from spaces import scheme
from trainers.models import Network, build_network
from trainers.quantization import quantize

TINY = ["--set", "teacher={width: 4, epochs: 2}", "--set", "data.train_images=300"]
Augury = Callable[..., tuple[int, str, str]]


@pytest.fixture
def augury(tmp_path, monkeypatch, capsys) -> Augury:
    """The command line in this process: a code, stdout and stderr."""
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["augury", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


def test_a_teacher_is_trained_to_a_file_and_checked_from_it(augury, tmp_path):
    code, out, err = augury("teacher", "train", "--out", "t.pt", "--json", *TINY)
    assert code == 0, err
    trained = json.loads(out)
    assert torch.load(tmp_path / "t.pt", weights_only=True)["conv1.weight"].shape[0] == 4
    (kept,) = (tmp_path / "cache" / "teachers").iterdir()  # a search will find it there

    code, out, err = augury("teacher", "check", "t.pt", "--json", *TINY)
    assert code == 0, err
    found = json.loads(out)
    for part in ("validation", "test"):
        assert found[part]["accuracy"] == trained["accuracy"][part]
        assert 0 <= found[part]["calibration_error"] <= 1
    assert found["cmi"] >= 0
    assert isinstance(found["warnings"], list)

    code, out, err = augury("teacher", "check", "t.pt", "--quiet", *TINY)
    assert (code, err) == (0, "")
    assert f"{found['validation']['accuracy']:.1%}" in out
    assert f"CMI {found['cmi']:.4f}, D {found['centroid_divergence']:.4f}" in out
    assert [*(tmp_path / "cache" / "teachers").iterdir()] == [kept]


def test_a_teacher_whose_answers_overflow_is_refused(augury, tmp_path):
    state = build_network("resnet8", 10, width=4, seed=0).state_dict()
    state["classifier.weight"].fill_(3e38)
    torch.save(state, tmp_path / "t.pt")
    code, out, err = augury("teacher", "check", "t.pt", "--quiet", *TINY)
    assert (code, out) == (2, "")
    assert "the teacher's logits are not finite" in err


def test_a_teacher_that_knows_nothing_is_told_in_words(augury, tmp_path):
    torch.save(build_network("resnet8", 10, width=4, seed=0).state_dict(), tmp_path / "t.pt")
    code, out, _ = augury("teacher", "check", "t.pt", "--quiet", *TINY)
    assert code == 0
    assert "Warning: It names" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--out", "t.onnx"], "end in .pt or .pth"),
        (["train", "--out", "nowhere/t.pt"], "there is no folder nowhere"),
        (["train", "--out", "t.pt", "--set", "teacher.weights=a.pt"], "is not trained"),
        (["train", "--out", "t.pt", "--set", "teacher.network=resnet9"], "did you mean 'resnet"),
        (["train", "--out", "t.pt", "--set", "student.network={nam: vgg8}"], "did you mean 'name'"),
        (["train", "--out", "t.pt", "--set", "teacher.network=torchvision:resnet18"], "32 pixels"),
        (["check", "nowhere.pt"], "cannot read the weights"),
        (["check", "t.pt", "--set", "teacher.wight=3"], "did you mean 'weights'"),
    ],
)
def test_a_mistake_gets_one_sentence_and_writes_nothing(augury, tmp_path, words, sentence):
    code, out, err = augury("teacher", *words[:1], "--quiet", *words[1:])
    assert code == 2
    assert err.startswith("augury: ")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


UNKNOWN_LAYER = """
from torch import nn

def network(num_classes):
    layers = nn.Conv2d(3, 4, 3, 2), nn.ConvTranspose2d(4, 4, 2), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, num_classes))
"""


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("teacher.network=their_own:network", "layer '1' is a ConvTranspose2d, which no quantizer"),
        ("student.recipe.loss={features: [{name: at, layers: [x]}]}", "unknown layer 'x'"),
        ("student.quantization={quantizer: lsq, weight_bits: 1}", "weight_bits from 2 to 8, got 1"),
    ],
)
def test_a_student_that_cannot_be_is_refused_before_a_teacher_is_trained(
    augury, tmp_path, monkeypatch, setting, sentence
):
    (tmp_path / "their_own.py").write_text(UNKNOWN_LAYER)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code, _, err = augury("search", "--run", "run", "--quiet", "--set", setting)
    assert code == 2
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache" / "teachers").exists()


def test_a_student_that_cannot_be_exported_is_named(augury, tmp_path):
    config = load_config(None, ["teacher.width=4", "student.quantization.quantizer=lsq"])
    run = RunFolder(tmp_path / "run")
    run.create(config.to_yaml(), {})
    policy = scheme("none")
    policy.save(run.best_policy)
    run.students.mkdir()
    student = run.students / f"{policy.identity}-0-10-student.pt"
    (run.students / f"{policy.identity}-0-5-student.pt").write_text("of another length: not read")
    model = quantize(build_network("resnet8", 10, width=4, seed=0), config.student.quantization)
    kept = {"validation_accuracy": 0.5, "student": model.state_dict()}

    def refused(sentence: str) -> None:
        torch.save(kept, student)
        code, out, err = augury("student", "export", "run", "--to", "s.onnx")
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert sentence in err
        assert not (tmp_path / "s.onnx").exists()

    refused("layer 'blocks.0.conv1' has 2 bits")
    kept["student"] = {**kept["student"], "more": torch.zeros(1)}
    refused('is of another network than the config\'s: Unexpected key(s) in state_dict: "more"')


def test_the_networks_of_a_config_survive_its_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "teacher: {network: 'torchvision:resnet18', weights: t.pt}\nstudent: {network: vgg8}\n"
    )
    config = load_config(tmp_path / "a.yaml")
    assert config.teacher.weights == Path("t.pt")
    assert config.teacher.architecture == Network(name="torchvision:resnet18")
    assert config.student.network == Network(name="vgg8")
    (tmp_path / "b.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "b.yaml") == config
    assert SearchConfig().student.network is None
