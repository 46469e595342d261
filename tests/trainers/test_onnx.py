"""Students as ONNX, run by onnxruntime beside PyTorch."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from spaces.errors import UserError
from trainers.quantization import METHODS, QuantizationSpec, calibrate, quantize, quantized_layers
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


class Twice(nn.Module):
    """A layer that is used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.again, self.classifier = self.shared, nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.shared(torch.relu(self.first(x))))
        logits: Tensor = self.classifier(self.again(x).mean((2, 3)))
        return logits


class Side(nn.Module):
    """Several students as one network, since an export takes a second."""

    def __init__(self, students: dict[str, nn.Module]) -> None:
        super().__init__()
        self.students = nn.ModuleDict(students)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([student(x) for student in self.students.values()], dim=1)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def student(images: Tensor, network: type[nn.Module], spec: QuantizationSpec) -> nn.Module:
    """A few steps from its calibration, so that no parameter is where it began."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(spec.quantizer.encode()))
        model = quantize(network(), spec)
    calibrate(model, images)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        nn.functional.cross_entropy(model(images), torch.arange(32) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def side(images) -> Side:
    def spec(name: str) -> QuantizationSpec:
        return QuantizationSpec(
            quantizer=name,
            weight_bits=4,
            activation_bits=8,
            per_channel=name in ("lsq", "ewgs"),
            first_and_last="8 bits" if name != "ewgs" else "keep",
        )

    students = {name: student(images, Block, spec(name)) for name in sorted(METHODS)}
    return Side(students | {"twice": student(images, Twice, spec("lsq"))})


@pytest.fixture(scope="module")
def exported(side, images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    export_onnx(side, images[:2], path)
    return path


@pytest.mark.parametrize("name", [*sorted(METHODS), "twice"])
def test_onnxruntime_says_what_pytorch_says(side, exported, images, name):
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images[:7].numpy()})
    place = 5 * list(side.students).index(name)
    found = torch.from_numpy(logits[:, place : place + 5])
    with torch.no_grad():
        expected = side.students[name](images[:7])
    # A sum in another order can put single inputs beside their level.
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_weights_are_stored_as_bytes_of_few_levels(side, exported):
    graph = onnx.load(exported).graph
    stored = {
        tensor.name: int(onnx.numpy_helper.to_array(tensor).max())
        for tensor in graph.initializer
        if tensor.name.endswith("weight.level")
    }
    layers = sum(len(quantized_layers(student)) for student in side.students.values())
    assert len(stored) == layers
    for name, largest in stored.items():
        ends = name.split(".")[2] in ("first", "classifier")
        assert largest < 16 or ends, name
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("DequantizeLinear") >= layers + kinds.count("QuantizeLinear")


def test_fewer_than_four_bits_are_refused_with_the_layer(images, tmp_path):
    model = student(images, Block, QuantizationSpec())
    with pytest.raises(UserError, match=r"layer 'branch' has 2 bits"):
        export_onnx(model, images[:2], tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())
