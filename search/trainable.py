"""One student as a Ray Tune trial, in an actor that serves many of them."""

import gc
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

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


class ProbeTrial(tune.Trainable):
    """Distils a student for `epochs` epochs under the policy in its config, a report per epoch.

    Where there is a folder for `students`, this is promotion: the last report has the test accuracy
    too, and the student is kept there as IDENTITY-SEED.pt.

    After every epoch there is a checkpoint, from which whoever trains the same student goes on: the
    same trial after its worker was lost, or another one of another sitting. It begins by telling
    the last epoch again, since nobody may have heard of it.

    The config holds `policy` (JSON), `seed`, `cpus` and `gpus`. A mistake that will repeat itself,
    a diverging loss for example, is a result with `failure` set and no figures; raising is left to
    the infrastructure, which Tune retries.
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
        self._teacher = teacher_from_arrays(teacher, self._splits, shared.teacher_recipe)
        self._teacher.to(self._device)
        self._student, self._total_epochs, self._students = shared.student, epochs, students
        self._checkpoints, self._origin = shared.checkpoints, shared.origin
        self._trainer: StudentTrainer | None = None
        self._reports: Iterator[EpochReport] = iter(())

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        # Anything but True loses a slot of the concurrency limit for good, so nothing here may
        # fail: the next trainer is built in `step`.
        self.config, self._trainer = new_config, None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def step(self) -> dict[str, Any]:
        try:
            if self._trainer is None:
                self._begin()
            report = next(self._reports)
        except (DivergedError, UserError, ValueError, RuntimeError) as error:
            return failed(f"{type(error).__name__}: {error}")
        assert self._trainer is not None
        result = report.as_dict() | {"device": self._device_name()}
        result["done"] = report.epoch >= self._total_epochs
        if result["done"] and self._students is not None:
            result["test_accuracy"] = self._trainer.test_accuracy()
            self._keep(self._trainer, report)
        return result

    def _begin(self) -> None:
        """Makes the trainer, or the one that a checkpoint left off with."""
        policy, seed = policy_from_json(self.config["policy"]), self.config["seed"]
        trainer = StudentTrainer(
            teacher=self._teacher,
            splits=self._splits,
            policy=policy,
            quantization=self._student.quantization,
            recipe=self._student.recipe,
            epochs=self._total_epochs,
            seed=seed,
            network=self._start(),
        )
        path = checkpoint(self._checkpoints, policy, seed, self._total_epochs)
        self._trainer, self._reports = trainer, self._trained(trainer, path)

    def _trained(self, trainer: StudentTrainer, path: Path) -> Iterator[EpochReport]:
        if path.exists():
            kept = torch.load(path, weights_only=True, map_location=self._device)
            if kept["origin"] == self._origin:
                trainer.load_state_dict(kept["state"])
                yield EpochReport(**kept["report"])
        for report in trainer.epochs():
            content = {"state": trainer.state_dict(), "report": report.as_dict()}
            with atomic_write(path) as temporary:
                torch.save(content | {"origin": self._origin}, temporary)
            yield report

    def _keep(self, trainer: StudentTrainer, report: EpochReport) -> None:
        assert self._students is not None
        identity, seed = policy_from_json(self.config["policy"]).identity, self.config["seed"]
        content = {
            "student": {name: value.cpu() for name, value in trainer.outcome.state_dict().items()},
            "validation_accuracy": report.validation_accuracy,
        }
        with atomic_write(self._students / f"{identity}-{seed}.pt") as temporary:
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

    def __repr__(self) -> str:  # the name of the actor on Ray's dashboard
        return f"Student({policy_from_json(self.config['policy'])})"


def checkpoint(folder: Path, policy: Policy, seed: int, epochs: int) -> Path:
    """Where a student that is being trained is kept, in the folder of all of them."""
    return folder / f"{policy.identity}-{seed}-{epochs}.pt"


def failed(reason: str) -> dict[str, Any]:
    """The last result of a trial that cannot go on."""
    return {**dict.fromkeys(FIGURES, math.nan), "failure": reason, "done": True}
