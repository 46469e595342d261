"""Students as ONNX, run by onnxruntime beside PyTorch."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from spaces.errors import UserError
from trainers.models import build_network
from trainers.quantization import METHODS, QuantizationSpec, calibrate, quantize
from trainers.quantization.onnx import export_onnx


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def student(images: Tensor, spec: QuantizationSpec) -> nn.Module:
    """A few steps from its calibration, so that no parameter is where it began."""
    model = quantize(build_network("resnet8", 10, width=4, seed=0), spec)
    calibrate(model, images)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        nn.functional.cross_entropy(model(images), torch.arange(32) % 10).backward()
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
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))
    kinds = [node.op_type for node in onnx.load(tmp_path / "student.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == (6 if name == "ewgs" else 8)
    assert kinds.count("DequantizeLinear") == 2 * kinds.count("QuantizeLinear")


def test_weights_are_stored_as_bytes_of_few_levels(images, tmp_path):
    model = student(images, QuantizationSpec(quantizer="lsq", weight_bits=4, activation_bits=4))
    export_onnx(model, images[:2], tmp_path / "student.onnx")
    stored = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "student.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.UINT8 and len(tensor.dims) == 4
    ]
    assert len(stored) == 6
    assert all(array.max() < 16 for array in stored)


def test_fewer_than_four_bits_are_refused_with_the_layer(images, tmp_path):
    model = student(images, QuantizationSpec())
    with pytest.raises(UserError, match=r"layer 'blocks\.0\.conv1' has 2 bits"):
        export_onnx(model, images[:2], tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


def test_a_layer_that_is_used_twice_is_exported_in_both_places(images, tmp_path):
    shared = nn.Conv2d(4, 4, 3, padding=1)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared, nn.Flatten())
    network.append(nn.Linear(4 * 256, 3))
    model = quantize(network, QuantizationSpec(quantizer="lsq", weight_bits=4, activation_bits=8))
    calibrate(model, images)
    export_onnx(model.eval(), images[:2], tmp_path / "student.onnx")
    found = by_onnxruntime(tmp_path / "student.onnx", images[:4])
    with torch.no_grad():
        torch.testing.assert_close(found, model(images[:4]), atol=0.02, rtol=0)
    kinds = [node.op_type for node in onnx.load(tmp_path / "student.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == 2
