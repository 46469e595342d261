"""A student that is trained for some seconds, to see how fast it is and what memory it takes."""

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from search.trainable import Distillation, Shared
from spaces.policy import policy_from_json
from trainers.datasets import Labelled
from trainers.student import EpochReport
from trainers.teacher import EVALUATION_BATCH, logits_of

PILOT = 2  # batches of the first epochs
EPOCH_SECONDS = 0.5  # of the later ones: short, so that students that are to stop together do
ENDLESS = 10**6  # epochs


@dataclass(frozen=True)
class Reading:
    """Images per second of training; bytes of memory that this process takes at most; bytes that
    all have taken of the GPU, and that it has, 0 on a CPU."""

    images_per_second: float
    memory: float
    gpu_used: float
    gpu_there: float


class Prober(Distillation):
    """The student of a trial, on part of its images, so that an epoch is short. What else a trial
    has in memory, this has, too. `config` is that of a ProbeTrial."""

    def __init__(self, config: dict[str, Any], shared: Shared) -> None:
        device = "cuda" if config["gpus"] > 0 else "cpu"
        super().__init__(shared, ENDLESS, None, cpus=config["cpus"], device=device)
        self._config = config
        self._whole, self._recipe = self._splits, self._student.recipe
        self._rounds: Iterator[EpochReport] = iter(())
        self._per_epoch = 0

    def pace(self) -> float:
        """Images per second of the student alone, by its first batches."""
        self._make(PILOT * self._recipe.batch_size)
        return next(self._rounds).images_per_second

    def warm_up(self, images_per_second: float) -> None:
        """Makes the student anew, with epochs that are short at that pace."""
        self.forget()
        self._make(int(images_per_second * EPOCH_SECONDS))
        some = torch.arange(min(EVALUATION_BATCH, len(self._whole.validation.labels)))
        logits_of(self._teacher, self._whole, self._whole.validation.take(some.to(self._device)))

    def timed(self, threads: int, seconds: float) -> Reading:
        torch.set_num_threads(threads)
        images, spent, until = 0, 0.0, time.monotonic() + seconds
        while time.monotonic() < until:
            report = next(self._rounds)
            images += self._per_epoch
            spent += self._per_epoch / report.images_per_second
        gpu_used, gpu_there = self._gpu()
        return Reading(images / spent, _own_memory(), gpu_used, gpu_there)

    def _make(self, images: int) -> None:
        """The student, and its first epoch, which is slower than others; an epoch has about as many
        images, a batch or more and no more than those of a trial."""
        recipe, data = self._recipe, self._whole.student
        images = max(images, recipe.batch_size)
        repeats = min(max(images // len(data.labels), 1), recipe.repeats)
        rows = min(images, len(data.labels))
        self._per_epoch = rows * repeats
        self._splits = replace(
            self._whole,
            student=_first(data, rows),
            validation=_first(self._whole.validation, recipe.batch_size),
        )
        # EWGS's delta is renewed once for the memory that it takes; a trial has long epochs.
        every = recipe.curvature_every and ENDLESS
        recipe = recipe.model_copy(update={"repeats": repeats, "curvature_every": every})
        self._student = self._student.model_copy(update={"recipe": recipe})
        self.begin(policy_from_json(self._config["policy"]), self._config["seed"])
        assert self._trainer is not None
        self._rounds = self._trainer.epochs()  # those of a trial would write checkpoints
        next(self._rounds)

    def _gpu(self) -> tuple[float, float]:
        if self._device.type != "cuda":
            return 0.0, 0.0
        # PyTorch gives nothing back that it has reserved: what is used now was used at the peak.
        free, there = torch.cuda.mem_get_info(self._device)
        return float(there - free), float(there)


def _first(data: Labelled, count: int) -> Labelled:
    rows = torch.arange(min(count, len(data.labels)), device=data.labels.device)
    return data.take(rows)


def _own_memory() -> float:
    """Bytes of memory that this process had at most, without what it shares with others: libraries,
    and the arrays in the object store."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform != "linux":
        return float(peak)  # bytes
    shared = int(Path("/proc/self/statm").read_text().split()[2]) * resource.getpagesize()
    return float(max(1024 * peak - shared, 1))
