"""One student as a Ray Tune trial, in an actor that serves many of them."""

import gc
import hashlib
import math
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch
from ray import tune
from ray.tune import PlacementGroupFactory
from torch import nn

from search.config import SearchConfig, StudentConfig
from spaces import Policy
from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from spaces.policy import policy_from_json
from trainers.datasets import ImageSplits
from trainers.models import build_network, network_from_arrays
from trainers.student import FIGURES, DivergedError, EpochReport, StudentTrainer
from trainers.teacher import TeacherRecipe, teacher_from_arrays, teacher_hash, to_arrays


@dataclass(frozen=True)
class Shared:
    """What all students of a search share. Data, teacher and the weights that students of another
    network start from lie once in the object store, for probes and promotion alike, and every actor
    of a node maps the same memory."""

    splits: ray.ObjectRef[dict[str, Any]]
    teacher: ray.ObjectRef[dict[str, np.ndarray]]
    teacher_recipe: TeacherRecipe
    student: StudentConfig
    student_weights: ray.ObjectRef[dict[str, np.ndarray]] | None
    checkpoints: Path  # the folder of the checkpoints, which all nodes share
    origin: str  # a hash of all that makes a student, but for its policy, seed and epochs
    images: Literal["student", "train"] = "student"  # the part of the data that students learn from

    @classmethod
    def put(
        cls,
        config: SearchConfig,
        splits: ImageSplits,
        teacher: nn.Module,
        start: nn.Module | None = None,
        *,
        checkpoints: Path,
    ) -> "Shared":
        """Numpy rather than tensors: those are copied out of the store, arrays are mapped.

        `start` is what `StudentConfig.start` gave.
        """
        arrays = ray.put(splits.to_arrays()), ray.put(to_arrays(teacher))
        network = config.student.network
        weights = None
        if start is not None and network is not None and network.weights is not None:
            weights = ray.put(to_arrays(start))
        made_by = [config.student.model_dump_json(), splits.content_hash]
        made_by += [teacher_hash(splits, config.teacher), version("torch")]
        origin = hashlib.blake2b("\n".join(made_by).encode(), digest_size=8).hexdigest()
        return cls(*arrays, config.teacher, config.student, weights, checkpoints, origin)

    def learning_from(self, images: Literal["student", "train"]) -> "Shared":
        """The same for students that learn from another part of the data."""
        return replace(self, images=images, origin=f"{self.origin}-{images}")


class ProbeTrial(tune.Trainable):
    """Distils a student for `epochs` epochs under the policy in its config, a report per epoch.

    Where there is a folder for `students`, this is promotion: the last report has the test accuracy
    too, and the student is kept there as IDENTITY-SEED-EPOCHS-IMAGES.pt.

    After every epoch there is a checkpoint, from which whoever trains the same student goes on: the
    same trial after its worker was lost, or another one of another sitting. It begins by telling
    the last epoch again, since nobody may have heard of it.

    The config holds `policy` (JSON), `seed`, `cpus` and `gpus`. What would repeat itself, a
    diverging loss for example, is a result with `failure` set and no figures; only what befalls the
    worker from outside is left to Tune, which retries it.
    """

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], *, shared: Shared, epochs: int, students: Path | None = None
    ) -> None:
        torch.set_num_threads(max(int(config["cpus"]), 1))
        self._device = torch.device("cuda" if config["gpus"] > 0 else "cpu")
        splits, teacher = ray.get([shared.splits, shared.teacher])
        weights = shared.student_weights
        self._weights = None if weights is None else ray.get(weights)
        self._splits = ImageSplits.from_arrays(splits).to(self._device)
        self._images = shared.images
        if shared.images == "train":
            self._splits = replace(self._splits, student=self._splits.train)
        self._teacher = teacher_from_arrays(teacher, self._splits, shared.teacher_recipe)
        self._teacher.to(self._device)
        self._student, self._total_epochs, self._students = shared.student, epochs, students
        self._checkpoints, self._origin = shared.checkpoints, shared.origin
        self._name = f"students of {shared.checkpoints.parent.name}, one after the other"
        self._trainer: StudentTrainer | None = None
        self._reports: Iterator[EpochReport] = iter(())

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        # Anything but True loses a slot of the concurrency limit for good, so nothing here may
        # fail: the next trainer is built in `step`.
        self.config = new_config
        self._forget_trainer()
        return True

    def step(self) -> dict[str, Any]:
        # Until Ray sets it again: the dashboard's list of processes shows who is being trained.
        ray._raylet.setproctitle(f"ray::{self._title()}")  # type: ignore[attr-defined]
        try:
            report = self._next_epoch()
        except (DivergedError, UserError) as error:
            return failed(f"{type(error).__name__}: {error}")
        except Exception as error:  # of a user's own network or loss, or our bug: not to be retried
            return failed(f"{type(error).__name__}: {error} ({_place(error)})")
        assert self._trainer is not None
        result = report.as_dict() | {
            "device": self._device_name(),
            "gpu_memory_bytes": torch.cuda.memory_reserved(),  # 0 without a GPU
            "batch_size": self._trainer.recipe.batch_size,
            "done": report.epoch >= self._total_epochs,
        }
        if result["done"] and self._students is not None:
            result["test_accuracy"] = self._trainer.test_accuracy()
            self._keep(self._trainer, report)
        return result

    def _next_epoch(self) -> EpochReport:
        """Raises what training raises. What is too much for the memory is tried once more, from the
        beginning and with half the batch."""
        whole = self._student.recipe.batch_size
        if self._trainer is None:
            self._begin(whole)
        try:
            return next(self._reports)
        except torch.OutOfMemoryError:
            if self._trainer is None or self._trainer.recipe.batch_size < whole or whole < 4:
                raise
        self._forget_trainer()  # here the exception no longer holds on to its frames
        self._checkpoint().unlink(missing_ok=True)
        self._begin(whole // 2)
        return next(self._reports)

    def _begin(self, batch_size: int) -> None:
        """Makes the trainer, or the one that a checkpoint left off with."""
        print(self._title())  # into the actor's log
        kept = self._kept()
        size = kept["batch_size"] if kept else batch_size
        trainer = StudentTrainer(
            teacher=self._teacher,
            splits=self._splits,
            policy=self._policy(),
            quantization=self._student.quantization,
            recipe=self._student.recipe.model_copy(update={"batch_size": size}),
            epochs=self._total_epochs,
            seed=self.config["seed"],
            network=self._start(),
        )
        self._trainer, self._reports = trainer, self._trained(trainer, kept)

    def _trained(
        self, trainer: StudentTrainer, kept: dict[str, Any] | None
    ) -> Iterator[EpochReport]:
        if kept is not None:
            trainer.load_state_dict(kept["state"])
            yield EpochReport(**kept["report"])
        for report in trainer.epochs():
            content = {
                "origin": self._origin,
                "batch_size": trainer.recipe.batch_size,
                "report": report.as_dict(),
                "state": trainer.state_dict(),
            }
            with atomic_write(self._checkpoint()) as temporary:
                torch.save(content, temporary)
            yield report

    def _kept(self) -> dict[str, Any] | None:
        """The checkpoint of this very student, where there is one."""
        if not self._checkpoint().exists():
            return None
        kept = torch.load(self._checkpoint(), weights_only=True, map_location=self._device)
        return kept if kept["origin"] == self._origin else None

    def _checkpoint(self) -> Path:
        return checkpoint(
            self._checkpoints, self._policy(), self.config["seed"], self._total_epochs
        )

    def _policy(self) -> Policy:
        return policy_from_json(self.config["policy"])

    def _forget_trainer(self) -> None:
        self._trainer, self._reports = None, iter(())
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _keep(self, trainer: StudentTrainer, report: EpochReport) -> None:
        assert self._students is not None
        name = (
            f"{self._policy().identity}-{self.config['seed']}-{self._total_epochs}-{self._images}"
        )
        content = {
            "student": {name: value.cpu() for name, value in trainer.outcome.state_dict().items()},
            "validation_accuracy": report.validation_accuracy,
        }
        with atomic_write(self._students / f"{name}.pt") as temporary:
            torch.save(content, temporary)

    def _device_name(self) -> str:
        return torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"

    # Tune asks for checkpoints of its own at times; there is nothing that ours do not hold.
    def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    def load_checkpoint(self, checkpoint_dir: str) -> None: ...  # type: ignore[override]

    def _start(self) -> nn.Module | None:
        """The network to quantize; None is the teacher."""
        network, classes = self._student.network, self._splits.num_classes
        if network is None:
            return None
        if self._weights is not None:
            return network_from_arrays(self._weights, network, classes).to(self._device)
        fresh = build_network(network.name, classes, width=network.width, seed=self.config["seed"])
        return fresh.to(self._device)

    def _title(self) -> str:
        """Whoever is being trained, in short."""
        return f"{self._policy()}, seed {self.config['seed']}"

    # The name of the actor on Ray's dashboard, which is asked for when it is made and never again:
    # it is that of no student, since there will be others.
    def __repr__(self) -> str:
        return self._name


def checkpoint(folder: Path, policy: Policy, seed: int, epochs: int) -> Path:
    """Where a student that is being trained is kept, in the folder of all of them."""
    return folder / f"{policy.identity}-{seed}-{epochs}.pt"


def _place(error: Exception) -> str:
    """Where `error` was raised: `file.py, line 3`."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def failed(reason: str) -> dict[str, Any]:
    """The last result of a trial that cannot go on."""
    return {**dict.fromkeys(FIGURES, math.nan), "failure": reason, "done": True}
