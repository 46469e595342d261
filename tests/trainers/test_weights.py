"""Weights from files in the formats that people keep them in, and files that do not fit."""

import argparse
import os
import re
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spaces import UserError
from trainers.models import build_network, weights_hash
from trainers.models.weights import load_weights, read_state_dict


def network(seed: int = 0, classes: int = 10, name: str = "resnet8", width: int = 4) -> nn.Module:
    return build_network(name, classes, width=width, seed=seed)


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in network(1).state_dict().items()}


def assert_loads(path: Path) -> None:
    model, expected = network(0), network(1).state_dict()
    load_weights(model, path, 10)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize(
    "content",
    [
        prefixed(""),
        OrderedDict(prefixed("")),
        {"state_dict": prefixed(""), "epoch": 3, "best": 0.9},
        {"model": prefixed("")},
        prefixed("module."),
        {"state_dict": prefixed("module._orig_mod.")},
    ],
    ids=["plain", "ordered", "state_dict", "model", "module", "both"],
)
@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_a_state_dict_however_it_was_saved(tmp_path, content, ending):
    torch.save(content, tmp_path / f"net{ending}")
    assert_loads(tmp_path / f"net{ending}")


def test_a_state_dict_as_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(network(1).state_dict(), tmp_path / "net.safetensors")
    assert_loads(tmp_path / "net.safetensors")


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(network(1).state_dict(), tmp_path / "net.pt")
    assert_loads(Path("~/net.pt"))
    assert weights_hash(Path("~/net.pt")) == weights_hash(tmp_path / "net.pt")


def refusal(path: Path, model: nn.Module | None = None) -> str:
    model = model or network(0)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(model, path, 10)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), "a refused file changed the network"
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
    return str(error.value)


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        (network(name="vgg8"), r"another network: of 44 keys 42 missing \(.*\), 35 unexpected"),
        (network(width=5), r"36 of 44 weights have other shapes, .*conv1.weight is \(5, 3, 3, 3\)"),
        (network(classes=100), r"weights for 100 classes, the data has 10"),
    ],
    ids=["network", "width", "classes"],
)
def test_weights_of_another_network_are_told_apart(tmp_path, saved, sentence):
    torch.save(saved.state_dict(), tmp_path / "net.pt")
    assert re.search(sentence, refusal(tmp_path / "net.pt"))


def test_other_classes_are_told_where_the_classifier_is_a_convolution(tmp_path):
    name = "torchvision:squeezenet1_1"
    torch.save(build_network(name, 12, seed=0).state_dict(), tmp_path / "net.pt")
    message = refusal(tmp_path / "net.pt", build_network(name, 10, seed=0))
    assert "weights for 12 classes, the data has 10" in message


def test_a_missing_and_a_further_key_are_named(tmp_path):
    state = network(1).state_dict()
    state["head.weight"] = state.pop("classifier.weight")
    torch.save(state, tmp_path / "net.pt")
    message = refusal(tmp_path / "net.pt")
    assert "1 missing (classifier.weight), 1 unexpected (head.weight)" in message


def test_weights_that_diverged_are_refused(tmp_path):
    state = network(1).state_dict()
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "net.pt")
    assert "not finite in 1 of the weights (conv1.weight)" in refusal(tmp_path / "net.pt")


@pytest.mark.parametrize(
    "content",
    [{}, [1, 2], {"state_dict": {}}, {"epoch": 3}, {1: torch.zeros(2)}, torch.zeros(3)],
    ids=["empty", "list", "nothing inside", "numbers", "no names", "tensor"],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    assert "holds no state_dict" in refusal(tmp_path / "net.pt")


def test_a_whole_module_is_refused_and_not_unpickled(tmp_path):
    torch.save(network(1), tmp_path / "net.pt")
    assert "save model.state_dict()" in refusal(tmp_path / "net.pt")
    torch.save({"state_dict": prefixed(""), "args": argparse.Namespace()}, tmp_path / "net.pt")
    assert "not a file of weights alone" in refusal(tmp_path / "net.pt")


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"state_dict": Trap(str(tmp_path / "trap"))}, tmp_path / "net.pt")
    refusal(tmp_path / "net.pt")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere.pt", "cannot read the weights: No such file"),
        ("folder.pt", "cannot read the weights: Is a directory"),
        ("net.onnx", "end in .pt, .pth or .safetensors"),
    ],
)
def test_a_path_that_is_no_file_of_weights(tmp_path, name, sentence):
    (tmp_path / "folder.pt").mkdir()
    assert sentence in refusal(tmp_path / name)


@given(content=st.binary(max_size=200), ending=st.sampled_from([".pt", ".safetensors"]))
def test_any_bytes_are_refused_with_a_sentence(tmp_path_factory, content, ending):
    path = tmp_path_factory.mktemp("bytes") / f"net{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="net"):
        read_state_dict(path)


def test_safetensors_is_asked_for_only_where_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "net.safetensors").write_bytes(b"")
    assert "needs the package safetensors" in refusal(tmp_path / "net.safetensors")


def test_the_hash_of_a_file_is_of_its_content(tmp_path):
    for name, content in {"a.pt": b"1", "b.pt": b"1", "c.pt": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (weights_hash(tmp_path / name) for name in ("a.pt", "b.pt", "c.pt"))
    assert a == b != c
    with pytest.raises(UserError, match="cannot read the weights"):
        weights_hash(tmp_path / "nowhere.pt")


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)
