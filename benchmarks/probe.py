"""One epoch of a probe, and the score of one policy, against the plain way, in the same run.

    python benchmarks/probe.py [--rounds 3] [--threads 2] [--images 5000]

A ResNet-20 of 2 bits (EWGS, without its curvature) is distilled from the same network by the recipe
of configs/cifar10_resnet20.yaml, under crop, flip and TrivialAugment, on images of CIFAR's shape.

The plain way is that of the paper's scripts, as one would write it down: PIL images through
torchvision v2 in a DataLoader with two workers, the quantizer chained from torch's own functions,
two Adams, the teacher in fp32 once a step. An epoch of the scripts ends with two passes without
gradients: the training images once more, for their accuracy, and the held-out ones. Ours has the
former's figures, and the metric besides, from the training steps themselves. `epoch_vs_plain` is of
the whole epoch, `without_training_accuracy` of one from which that pass is left out.

The scripts score a policy in 22 passes: one for the centroids, one for the divergences, and ten
with the policy beside ten without it for T.stddev. Ours reads all that from one pass.

Contestants take turns, so that a busy machine slows them alike, and their CPU seconds, with those
of the workers, are counted too. Ratios are the plain way's seconds over ours. On a GPU an epoch is
of 50,000 images, and only ours runs. The last line is one JSON object.
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import torch
from augmentation import processor
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from spaces import Chain, Operation, scheme
from trainers.datasets import ImageSplits, Labelled
from trainers.distillation import DistillationLoss
from trainers.metric import teacher_stddev
from trainers.models import build_network
from trainers.quantization import QuantizationSpec
from trainers.scoring import score
from trainers.student import StudentRecipe, StudentTrainer

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES, VALIDATION, BATCH = 10, 1000, 256
BASE = Chain(
    operations=(Operation(name="crop", magnitude=0.125), Operation(name="flip", probability=0.5))
)
POLICY = scheme("trivial_augment").on(BASE)
RECIPE = StudentRecipe(
    batch_size=BATCH,
    repeats=1,
    learning_rate=1e-3,
    quantizer_learning_rate=1e-5,
    loss=DistillationLoss(temperature=4.0, alpha=2.0, gamma=1.0),
    curvature_every=0,
)


def images_of(count: int, seed: int) -> Labelled:
    """Smooth random images, uint8 (N, 3, 32, 32), with labels in turn."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=rng) * 255
    images = F.interpolate(coarse, size=(32, 32), mode="bilinear").byte()
    return Labelled(images, torch.arange(count) % CLASSES)


def splits_of(count: int) -> ImageSplits:
    train, held = images_of(count, 0), images_of(VALIDATION, 1)
    return ImageSplits("random", CLASSES, train, train, held, held, MEAN, STD)


@torch.no_grad()
def teacher_for(splits: ImageSplits) -> nn.Module:
    """A ResNet-20 whose normalisations know these images: untrained, as fast as a trained one."""
    teacher = build_network("resnet20", CLASSES, seed=0)
    for images in splits.train.images[: 8 * BATCH].split(BATCH):
        teacher(splits.normalise(images))
    return teacher.eval().requires_grad_(False)


# The plain way.


class Pictures(Dataset):
    """Images one by one, as torchvision's CIFAR-10 gives them."""

    def __init__(self, data: Labelled, transform: v2.Transform) -> None:
        self.pixels = data.images.permute(0, 2, 3, 1).numpy()
        self.labels, self.transform = data.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


TO_TENSOR = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD))
CROP_AND_FLIP = (v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip())
PLAIN = v2.Compose(TO_TENSOR)
BASIC = v2.Compose([*CROP_AND_FLIP, *TO_TENSOR])
AUGMENTED = v2.Compose([*CROP_AND_FLIP, v2.TrivialAugmentWide(), *TO_TENSOR])


def loader(data: Labelled, transform: v2.Transform, *, shuffle: bool) -> DataLoader:
    """Its two workers stay between epochs."""
    pictures = Pictures(data, transform)
    return DataLoader(pictures, BATCH, shuffle=shuffle, num_workers=2, persistent_workers=True)


class Discretizer(torch.autograd.Function):
    """Equations 2 and 5 of EWGS."""

    @staticmethod
    def forward(ctx, unit: Tensor, levels: int, delta: float) -> Tensor:
        out = torch.round(unit * (levels - 1)) / (levels - 1)
        ctx.delta = delta
        ctx.save_for_backward(unit - out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (error,) = ctx.saved_tensors
        return grad * (1 + ctx.delta * torch.sign(grad) * error), None, None


class PlainConv(nn.Conv2d):
    """A convolution of EWGS, 2 bits, line by line as in the paper."""

    def of(self, exact: nn.Conv2d) -> "PlainConv":
        self.load_state_dict(exact.state_dict())
        names = ("weight_low", "weight_high", "input_low", "input_high", "scale")
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.tensor(0.0)))
        self.learned = [getattr(self, name) for name in names]
        self.ready = False
        return self

    def weights(self) -> Tensor:
        unit = (self.weight - self.weight_low) / (self.weight_high - self.weight_low)
        return 2 * (Discretizer.apply(unit.clamp(0, 1), 4, 1e-3) - 0.5)

    def inputs(self, x: Tensor) -> Tensor:
        unit = (x - self.input_low) / (self.input_high - self.input_low)
        return Discretizer.apply(unit.clamp(0, 1), 4, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.initialise(x)
        return self._conv_forward(self.inputs(x), self.weights(), None) * self.scale.abs()

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        self.ready = True
        self.weight_high.copy_(3 * self.weight.std())
        self.weight_low.copy_(-self.weight_high)
        self.input_high.copy_(3 * x.std() / math.sqrt(1 - 2 / math.pi))
        self.input_low.copy_(x.min())
        exact = self._conv_forward(x, self.weight, None)
        quantized = self._conv_forward(self.inputs(x), self.weights(), None)
        self.scale.copy_(exact.abs().mean() / quantized.abs().mean())


class PlainTraining:
    """The loop of the scripts."""

    def __init__(self, teacher: nn.Module, splits: ImageSplits) -> None:
        self.teacher = copy.deepcopy(teacher)
        self.student = copy.deepcopy(teacher).requires_grad_(True)
        layers = []
        for block in self.student.blocks:
            for name in ("conv1", "conv2"):
                exact = getattr(block, name)
                shape = exact.in_channels, exact.out_channels, 3, exact.stride
                setattr(block, name, PlainConv(*shape, padding=1, bias=False).of(exact))
                layers.append(getattr(block, name))
        learned = [parameter for layer in layers for parameter in layer.learned]
        known = set(map(id, learned))
        weights = [p for p in self.student.parameters() if id(p) not in known]
        self.optimizers = (
            torch.optim.Adam(weights, lr=1e-3, weight_decay=1e-4),
            torch.optim.Adam(learned, lr=1e-5),
        )
        self.training = loader(splits.student, AUGMENTED, shuffle=True)
        self.validation = loader(splits.validation, PLAIN, shuffle=False)

    def epoch(self) -> float:
        """Trains; returns the mean loss."""
        self.student.train()
        losses = []
        for images, labels in self.training:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            logits = self.student(images)
            with torch.no_grad():
                taught = self.teacher(images)
            by_student, by_teacher = (F.log_softmax(x / 4, dim=1) for x in (logits, taught))
            kd = 16 * F.kl_div(by_student, by_teacher, reduction="batchmean", log_target=True)
            loss = F.cross_entropy(logits, labels) + 2 * kd
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    @torch.no_grad()
    def accuracy(self, batches: DataLoader) -> float:
        self.student.eval()
        hits = sum(
            (self.student(images).argmax(dim=1) == labels).sum().item()
            for images, labels in batches
        )
        return hits / len(batches.dataset)


class PlainScoring:
    """The metric as the scripts compute it, for hard labels."""

    def __init__(self, teacher: nn.Module, splits: ImageSplits) -> None:
        self.teacher = copy.deepcopy(teacher)
        self.augmented = loader(splits.train, AUGMENTED, shuffle=False)
        self.basic = loader(splits.train, BASIC, shuffle=False)

    @torch.no_grad()
    def metric(self) -> float:
        """D - CMI in two passes."""
        sums, counts = torch.zeros(CLASSES, CLASSES), torch.zeros(CLASSES)
        for images, labels in self.augmented:
            sums.index_add_(0, labels, torch.softmax(self.teacher(images), dim=1))
            counts += torch.bincount(labels, minlength=CLASSES)
        log_centroids = (sums / counts.unsqueeze(1)).log()
        total = 0.0
        for images, labels in self.augmented:
            log_p = torch.log_softmax(self.teacher(images), dim=1)
            divergence = F.kl_div(log_centroids[labels], log_p, reduction="sum", log_target=True)
            total += divergence.item()
        return float(-log_centroids.diagonal().mean()) - total / len(self.augmented.dataset)

    @torch.no_grad()
    def stddev(self) -> float:
        """T.stddev in twenty passes."""
        seen = []
        for _ in range(10):
            for augmented, basic in zip(self.augmented, self.basic, strict=True):
                logits = torch.cat([self.teacher(images) for images, _ in (augmented, basic)])
                seen.append(torch.softmax(logits, dim=1))
        return teacher_stddev(seen)


# Measuring.

Spent = dict[str, np.ndarray]  # by contestant: wall and CPU seconds, summed


@contextmanager
def counted(spent: Spent, who: str) -> Iterator[None]:
    before = clocks()
    yield
    spent[who] = spent.get(who, np.zeros(2)) + clocks() - before


def clocks() -> np.ndarray:
    """Wall and CPU seconds so far; those of the workers, where the system tells of them."""
    cpu = time.process_time()
    for child in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        cpu += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return np.array([time.perf_counter(), cpu])


def measured_epochs(teacher: nn.Module, splits: ImageSplits, rounds: int) -> Spent:
    reports, plain = (
        trainer_of(teacher, splits, rounds + 1).epochs(),
        PlainTraining(teacher, splits),
    )
    spent: Spent = {}
    for turn in range(rounds + 1):
        if turn == 1:  # the first one warms up: workers, index maps, kernels
            spent = {}
        with counted(spent, "ours"):
            next(reports)
        with counted(spent, "plain"):
            plain.epoch()
            plain.accuracy(plain.validation)
        with counted(spent, "training_accuracy"):
            plain.accuracy(plain.training)
    return {who: value / rounds for who, value in spent.items()}


def measured_scores(teacher: nn.Module, splits: ImageSplits, rounds: int) -> Spent:
    plain = PlainScoring(teacher, splits)
    spent: Spent = {}
    for turn in range(rounds + 1):
        if turn == 1:
            spent = {}
        with counted(spent, "ours"):
            ours = score(POLICY, teacher, splits, repeats=1, batch_size=BATCH, seed=turn).score
        with counted(spent, "two_passes"):
            theirs = plain.metric()
    print(f"score {ours:.3f} in one pass, {theirs:.3f} in two", flush=True)
    spent = {who: value / rounds for who, value in spent.items()}
    with counted(spent, "twenty_passes"):  # once: it takes what ten rounds of the two take
        plain.stddev()
    return spent


def trainer_of(teacher: nn.Module, splits: ImageSplits, epochs: int) -> StudentTrainer:
    return StudentTrainer(
        teacher=teacher,
        splits=splits,
        policy=POLICY,
        quantization=QuantizationSpec(),
        recipe=RECIPE,
        epochs=epochs,
        seed=0,
    )


def compared(teacher: nn.Module, splits: ImageSplits, rounds: int) -> dict[str, object]:
    """Ratios by wall clock and, under `cpu`, by CPU seconds; then the seconds themselves."""
    epochs, scores = (
        measured_epochs(teacher, splits, rounds),
        measured_scores(teacher, splits, rounds),
    )
    ratios = {
        "epoch_vs_plain": (epochs["plain"] + epochs["training_accuracy"]) / epochs["ours"],
        "without_training_accuracy": epochs["plain"] / epochs["ours"],
        "score_vs_22_passes": (scores["two_passes"] + scores["twenty_passes"]) / scores["ours"],
        "score_vs_2_passes": scores["two_passes"] / scores["ours"],
    }
    seconds = {f"{kind}_seconds": found for kind, found in (("epoch", epochs), ("score", scores))}
    return {
        **{name: round(float(wall), 2) for name, (wall, _) in ratios.items()},
        "cpu": {name: round(float(cpu), 2) for name, (_, cpu) in ratios.items()},
        **{k: {who: np.round(v, 2).tolist() for who, v in s.items()} for k, s in seconds.items()},
        "machine": processor(),
        "threads": torch.get_num_threads(),
    }


def on_gpu(rounds: int) -> dict[str, object]:
    """The fastest of some epochs of 50,000 images, milliseconds, and the score of one policy."""
    device = torch.device("cuda")
    splits = splits_of(50_000)
    teacher = teacher_for(splits).to(device)
    splits = splits.to(device)
    reports = trainer_of(teacher, splits, rounds + 1).epochs()
    found: dict[str, list[float]] = {"epoch_ms": [], "score_ms": []}
    for _ in range(rounds + 1):
        for name, work in (
            ("epoch_ms", lambda: next(reports)),
            ("score_ms", lambda: score(POLICY, teacher, splits, repeats=1, batch_size=BATCH)),
        ):
            torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            torch.cuda.synchronize()
            found[name].append(1000 * (time.perf_counter() - started))
    best = {name: round(min(values)) for name, values in found.items()}
    return {**best, "machine": torch.cuda.get_device_name(device)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=5000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if torch.cuda.is_available():
        figures = on_gpu(options.rounds) | {"images": 50_000}
    else:
        splits = splits_of(options.images)
        figures = compared(teacher_for(splits), splits, options.rounds) | {"images": options.images}
    figures |= {"torch": torch.__version__, "date": str(date.today())}
    text = json.dumps(figures)
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    name = "probe_gpu.json" if torch.cuda.is_available() else "probe.json"
    (results / name).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
