"""Training across processes: two that share the work, and one that is killed and goes on.

Called as a program, this file is one of two ranks, of which the first trains the other student,
too; and without arguments a comparison with a compiled student, which the suite's checks of types
would cut to pieces.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from spaces import UserError, scheme
from spaces.atomic_write import atomic_write
from trainers import parallel
from trainers.datasets import DigitsConfig, load_splits
from trainers.distillation import DistillationLoss
from trainers.models import build_network
from trainers.optimisation import SGD
from trainers.quantization import QuantizationSpec
from trainers.student import StudentRecipe, StudentTrainer
from trainers.teacher import frozen

STATISTICS = ("running_mean", "running_var")


def build(
    loss: DistillationLoss, *, bits: int, epochs: int, batch_size: int = 38, **options: Any
) -> StudentTrainer:
    """40 images, in batches of 38 and 2: the last is too short for two processes."""
    return StudentTrainer(
        teacher=frozen(build_network("resnet8", 10, width=4, seed=0)),
        splits=load_splits(DigitsConfig(image_size=8, student_images=40, validation_images=50)),
        policy=scheme("trivial_augment+cutmix"),
        quantization=QuantizationSpec(weight_bits=bits, activation_bits=bits),
        recipe=StudentRecipe(
            batch_size=batch_size,
            repeats=1,
            learning_rate=0.02,
            loss=loss,
            optimizer=SGD(),
            ema_decay=0.8,
            curvature_every=2,
            curvature_draws=1,
            **options,
        ),
        epochs=epochs,
        seed=3,
        network=build_network("resnet8", 10, width=4, seed=1),
    )


def shared(accumulate: int = 1) -> StudentTrainer:
    loss = DistillationLoss(gamma=0.5, features=[{"name": "fitnet", "weight": 1.0}])
    return build(loss, bits=8, epochs=2, accumulate=accumulate)


def interrupted() -> StudentTrainer:
    loss = DistillationLoss(features=[{"name": "crd"}])
    return build(loss, bits=2, epochs=4, batch_size=8)


def figures(trainer: StudentTrainer) -> list[dict[str, float]]:
    reports = [report.as_dict() for report in trainer.epochs()]
    # Of so few batches there is no T.stddev, and NaN is unlike itself.
    left_out = ("images_per_second", "teacher_stddev")
    return [{k: v for k, v in r.items() if k not in left_out} for r in reports]


def train(folder: Path, rank: int) -> None:
    """Leaves figures and state in `folder`; the first rank then trains an epoch for every line that
    it gets, and says when it is kept."""
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=2)
    trainer = shared()
    found = figures(trainer)
    try:
        interrupted()
    except UserError as error:
        refused = str(error)
    state = trainer.state_dict()
    torch.save({"figures": found, "state": state, "refused": refused}, folder / f"{rank}.pt")
    dist.destroy_process_group()
    print("done", flush=True)
    if rank > 0:
        return
    trainer = interrupted()
    reports = trainer.epochs()
    while sys.stdin.readline():
        report = next(reports)
        with atomic_write(folder / "state.pt") as temporary:
            torch.save(trainer.state_dict(), temporary)
        print(report.epoch, flush=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes, since each imports for seconds."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a nest of dictionaries and lists, with its place."""
    if isinstance(state, dict | list):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        for key, value in pairs:
            yield from leaves(value, f"{name}.{key}")
    else:
        yield name, state


def assert_same(a: Any, b: Any) -> None:
    """To the last bit."""
    for (name, left), (other, right) in zip(leaves(a), leaves(b), strict=True):
        assert name == other
        assert torch.equal(left, right) if isinstance(left, Tensor) else left == right, name


def test_two_processes_train_the_student_that_one_trains_in_two_parts(ranks, folder):
    alone = shared(accumulate=2)
    expected = figures(alone)
    assert [next_line(rank) for rank in ranks] == ["done", "done"]
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    assert_same(first, second)
    for name, tensor in alone.state_dict()["student"].items():
        if not name.endswith((*STATISTICS, "num_batches_tracked")):
            torch.testing.assert_close(first["state"]["student"][name], tensor, msg=name)
    # Statistics of batch norm, by which validation goes, are means over ranks and not a sequence.
    trained = {k: v for k, v in expected[0].items() if "validation" not in k and k != "kd_gap"}
    assert {k: first["figures"][0][k] for k in trained} == pytest.approx(trained, abs=1e-5)
    assert "crd remembers images" in first["refused"]


def test_a_killed_student_goes_on_as_if_nothing_had_happened(ranks, folder):
    epochs, moment = random.randint(1, 2), random.uniform(0, 0.1)
    assert ranks[0].stdin is not None
    ranks[0].stdin.write("\n" * (epochs + 1))
    ranks[0].stdin.flush()
    while next_line(ranks[0]) != str(epochs):
        assert ranks[0].poll() is None
    time.sleep(moment)
    ranks[0].kill()
    ranks[0].wait()
    resumed, whole = interrupted(), interrupted()
    resumed.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    done = resumed.epochs_done
    assert done in (epochs, epochs + 1)
    assert figures(resumed) == figures(whole)[done:], (epochs, moment)
    assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_compiled_student_learns_what_the_other_learns():
    lines = subprocess.check_output([sys.executable, __file__], text=True).splitlines()
    plain, compiled = map(json.loads, lines)
    for ours, theirs in zip(plain, compiled, strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3, abs=5e-3)
    assert plain != compiled


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_parts_are_the_batch_in_order_and_none_is_of_one_image(count, accumulate):
    parts = parallel.parts(count, accumulate)
    assert parts == parallel.own_parts(count, accumulate)
    rows = [row for part in parts for row in range(count)[part.rows]]
    assert rows == list(range(count))
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert len(parts) == min(accumulate, max(count // 2, 1))
    sizes = [len(range(count)[part.rows]) for part in parts]
    assert min(sizes) >= min(count, 2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        train(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        for compiled in (False, True):
            student = build(DistillationLoss(gamma=0.5), bits=8, epochs=2, compile=compiled)
            print(json.dumps(figures(student)))
