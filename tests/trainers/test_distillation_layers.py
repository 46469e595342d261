"""Where losses look: layers by name and by default, and networks that stay what they were."""

import pickle

import pytest
import torch
from torch import nn
from torchvision import models

from spaces.errors import UserError
from trainers.distillation import Answer, Tap, watched
from trainers.distillation.layers import embedding_tap, stage_taps
from trainers.models import build_network
from trainers.quantization import QuantizationSpec, calibrate, quantize


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network("resnet20", 10, width=4, seed=0).eval()


def stages(model: nn.Module, size: int) -> list[str]:
    taps = stage_taps(model, images(size))
    assert {tap.side for tap in taps} == {"output"}
    return [tap.module for tap in taps]


def test_the_stages_of_a_cifar_network_end_with_their_last_blocks(network):
    assert stages(network, 16) == ["blocks.2", "blocks.5", "blocks.8"]
    assert embedding_tap(network, images(16)) == Tap("classifier", "input")


def test_a_quantized_copy_has_the_same_stages(network):
    student = quantize(network, QuantizationSpec())
    calibrate(student, images(16))
    assert stages(student, 16) == stages(network, 16)
    assert embedding_tap(student, images(16)) == Tap("classifier", "input")


def test_two_stages_in_one_sequence_are_two_stages():
    shrink = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    blocks = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), shrink, nn.ReLU())
    model = nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert stages(model, 8) == ["0.1", "0.3"]
    assert embedding_tap(model, images(8)) == Tap("3", "input")


@pytest.mark.parametrize(
    ("build", "expected", "classifier"),
    [
        (models.resnet50, ["relu", "layer1.2", "layer2.3", "layer3.5", "layer4.2"], "fc"),
        (
            models.mobilenet_v2,
            ["features.1", "features.3", "features.6", "features.13", "features.18.2"],
            "classifier.1",
        ),
        (
            models.mobilenet_v3_small,
            ["features.0.2", "features.1", "features.3", "features.8", "features.12.2"],
            "classifier.3",
        ),
    ],
)
def test_torchvision_networks_have_their_known_stages(build, expected, classifier):
    """The first layers of a bottleneck have the resolution of the block before and are not it."""
    model = build(num_classes=3).eval()
    assert stages(model, 64) == expected
    assert embedding_tap(model, images(64)) == Tap(classifier, "input")


def test_a_watched_pass_is_the_same_pass_and_keeps_what_layers_give(network):
    taps = [Tap("blocks.2"), Tap("classifier", "input")]
    answer = watched(network, images(16), taps)
    assert isinstance(answer, Answer)
    assert torch.equal(answer.logits, network(images(16)))
    assert answer.features[taps[0]].shape == (2, 4, 16, 16)
    torch.testing.assert_close(network.classifier(answer.features[taps[1]]), answer.logits)


def test_no_hook_is_left_and_the_network_can_be_pickled(network):
    stage_taps(network, images(16))
    watched(network, images(16), [Tap("blocks.2")])
    broken = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="shapes"):
        watched(broken, torch.zeros(1, 3), [Tap("0")])
    modules = [*network.modules(), *broken.modules()]
    assert not any(module._forward_hooks for module in modules)
    again = pickle.loads(pickle.dumps(network))
    assert torch.equal(again(images(16)), network(images(16)))


def test_looking_for_layers_moves_no_statistics(network):
    network.train()
    before = network.bn1.running_mean.clone()
    stage_taps(network, images(16))
    assert network.training
    assert torch.equal(network.bn1.running_mean, before)
    network.eval()


def test_a_misspelt_layer_is_told_the_nearest(network):
    with pytest.raises(UserError, match=r"unknown layer 'block\.2'.*did you mean 'blocks\.2'"):
        watched(network, images(16), [Tap("block.2")])


def test_a_layer_that_is_never_called_is_refused(network):
    student = quantize(network, QuantizationSpec())
    calibrate(student, images(16))
    with pytest.raises(UserError, match=r"'blocks\.0\.conv1\.layer' but passes no tensor"):
        watched(student, images(16), [Tap("blocks.0.conv1.layer")])
