"""Students as ONNX, run by onnxruntime beside PyTorch."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from spaces.errors import UserError
from trainers.quantization import METHODS, QuantizationSpec, calibrate, quantize
from trainers.quantization.onnx import export_onnx


class Block(nn.Module):
    """A convolution and a depthwise one with the same input, as where a block halves its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.branch, self.shortcut = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.hidden, self.classifier = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.branch(x)) + self.shortcut(x)  # signed
        logits: Tensor = self.classifier(self.hidden(x.mean((2, 3))))
        return logits


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def student(images: Tensor, spec: QuantizationSpec) -> nn.Module:
    """A few steps from its calibration, so that no parameter is where it began."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = quantize(Block(), spec)
    calibrate(model, images)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        nn.functional.cross_entropy(model(images), torch.arange(32) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def by_onnxruntime(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_onnxruntime_says_what_pytorch_says(name, images, tmp_path):
    spec = QuantizationSpec(
        quantizer=name,
        weight_bits=4,
        activation_bits=8,
        per_channel=name in ("lsq", "ewgs"),
        first_and_last="8 bits" if name != "ewgs" else "keep",
    )
    model = student(images, spec)
    export_onnx(model, images[:2], tmp_path / "student.onnx")
    found = by_onnxruntime(tmp_path / "student.onnx", images[:7])
    with torch.no_grad():
        expected = model(images[:7])
    # A sum in another order can put single inputs beside their level.
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    graph = onnx.load(tmp_path / "student.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") >= (2 if name == "ewgs" else 4)
    stored = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.UINT8 and tensor.dims
    ]
    assert sorted(array.max() < 16 for array in stored if array.ndim > 1) == (
        [True] * 3 if name == "ewgs" else [False] * 2 + [True] * 3
    )


def test_fewer_than_four_bits_are_refused_with_the_layer(images, tmp_path):
    model = student(images, QuantizationSpec())
    with pytest.raises(UserError, match=r"layer 'branch' has 2 bits"):
        export_onnx(model, images[:2], tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


def test_a_layer_that_is_used_twice_is_exported_in_both_places(images, tmp_path):
    shared = nn.Conv2d(4, 4, 3, padding=1)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared, nn.Flatten())
    network.append(nn.Linear(4 * 64, 3))
    model = quantize(network, QuantizationSpec(quantizer="lsq", weight_bits=4, activation_bits=8))
    calibrate(model, images)
    export_onnx(model.eval(), images[:2], tmp_path / "student.onnx")
    found = by_onnxruntime(tmp_path / "student.onnx", images[:4])
    with torch.no_grad():
        torch.testing.assert_close(found, model(images[:4]), atol=0.02, rtol=0)
    kinds = [node.op_type for node in onnx.load(tmp_path / "student.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == 2
