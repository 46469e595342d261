"""One student as a Ray Tune trial, in an actor that serves many of them."""

import gc
import hashlib
import math
import traceback
from collections.abc import Iterator, Mapping
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

from search.config import SearchConfig, StudentConfig, kind_of
from search.storage import StorageError, Store, reached
from spaces import Policy
from spaces.errors import UserError
from spaces.policy import policy_from_json
from trainers import parallel
from trainers.datasets import ImageSplits
from trainers.models import build_network, network_from_arrays
from trainers.student import FIGURES, DivergedError, EpochReport, StudentTrainer
from trainers.teacher import TeacherRecipe, teacher_from_arrays, to_arrays


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
    checkpoints: Path | Store  # where the checkpoints are, for every node
    origin: str  # a hash of all that makes a student, but for its policy, seed and epochs
    images: Literal["student", "train"] = "student"  # the part of the data that students learn from
    workers: int = 1  # that train a student together

    @classmethod
    def put(
        cls,
        config: SearchConfig,
        splits: ImageSplits,
        teacher: nn.Module,
        start: nn.Module | None = None,
        *,
        checkpoints: Path | Store,
    ) -> "Shared":
        """Numpy rather than tensors: those are copied out of the store, arrays are mapped.

        `start` is what `StudentConfig.start` gave.
        """
        state = to_arrays(teacher)
        arrays = ray.put(splits.to_arrays()), ray.put(state)
        network = config.student.network
        weights = None
        if start is not None and network is not None and network.weights is not None:
            weights = ray.put(to_arrays(start))
        made_by = [config.student.model_dump_json(), splits.content_hash]
        made_by += [_digest(state), version("torch")]
        origin = hashlib.blake2b("\n".join(made_by).encode(), digest_size=8).hexdigest()
        return cls(*arrays, config.teacher, config.student, weights, checkpoints, origin)

    @property
    def run(self) -> str:
        """The name of the run's folder."""
        return Path(str(self.checkpoints)).parent.name

    def learning_from(self, images: Literal["student", "train"], workers: int = 1) -> "Shared":
        """The same for students that learn from another part of the data, of so many workers."""
        made_by = images if workers == 1 else f"{images}-{workers}"
        return replace(self, images=images, workers=workers, origin=f"{self.origin}-{made_by}")


class Distillation:
    """Distils students of a search, one after another, on a device of this process; of the ranks of
    torch.distributed each has one, and the first writes files.

    After every epoch there is a checkpoint, from which whoever trains the same student goes on. It
    begins by telling the last epoch again, since nobody may have heard of it. Where there is a
    folder for `students`, the last epoch has the test accuracy too, and the student is kept there
    as IDENTITY-SEED-KIND.pt.
    """

    def __init__(
        self,
        shared: Shared,
        epochs: int,
        students: Path | Store | None,
        *,
        cpus: float,
        device: str,
    ) -> None:
        torch.set_num_threads(max(int(cpus), 1))
        self._device = torch.device(device)
        splits, teacher = ray.get([shared.splits, shared.teacher])
        weights = shared.student_weights
        self._weights = None if weights is None else ray.get(weights)
        self._splits = ImageSplits.from_arrays(splits).to(self._device)
        if shared.images == "train":
            self._splits = replace(self._splits, student=self._splits.train)
        self._teacher = teacher_from_arrays(teacher, self._splits, shared.teacher_recipe)
        self._teacher.to(self._device)
        self._student, self._total_epochs = shared.student, epochs
        self._students = None if students is None else reached(students)
        self._checkpoints, self._origin = reached(shared.checkpoints), shared.origin
        self._kind = kind_of(epochs, shared.images, shared.workers)
        self._trainer: StudentTrainer | None = None
        self._batch_size = 0
        self._reports: Iterator[EpochReport] = iter(())

    @property
    def begun(self) -> bool:
        """Whether a student is being trained."""
        return self._trainer is not None

    @property
    def whole_batch(self) -> bool:
        """Whether it is made for, and trained on, batches as the recipe has them, of which a half
        would do."""
        trainer, whole = self._trainer, self._student.recipe.batch_size
        trained = trainer is not None and trainer.epochs_done >= self._total_epochs
        return not trained and self._batch_size == whole >= 4

    def begin(self, policy: Policy, seed: int, *, halved: bool = False) -> int:
        """Makes a student, with half the batch where it is to be `halved`, or the one that a
        checkpoint left off with; says how many epochs that one has been trained."""
        self._policy, self._seed = policy, seed
        print(self._title())  # into the log of the actor
        self._show_title()
        size = self._student.recipe.batch_size // (2 if halved else 1)
        kept = self._kept()
        if kept is not None and kept["batch_size"] > size:
            kept = None
        self._batch_size = kept["batch_size"] if kept else size
        self._trainer = StudentTrainer(
            teacher=self._teacher,
            splits=self._splits,
            policy=policy,
            quantization=self._student.quantization,
            recipe=self._student.recipe.model_copy(update={"batch_size": self._batch_size}),
            epochs=self._total_epochs,
            seed=seed,
            network=self._start(),
        )
        if kept is not None:
            self._trainer.load_state_dict(kept["state"])
        self._reports = self._trained(self._trainer, kept)
        return self._trainer.epochs_done

    def next_epoch(self) -> dict[str, Any]:
        """What an epoch tells, as Tune hears it. Raises what training raises."""
        self._show_title()
        assert self._trainer is not None
        report = next(self._reports)
        result = report.as_dict() | {
            "device": self._device_name(),
            "gpu_memory_bytes": torch.cuda.memory_reserved(),  # 0 without a GPU
            "batch_size": self._trainer.recipe.batch_size,
            "done": report.epoch >= self._total_epochs,
        }
        if result["done"] and self._students is not None:
            result["test_accuracy"] = self._trainer.test_accuracy()
            if parallel.rank() == 0:
                self._keep(self._trainer, report)
        return result

    def _title(self) -> str:
        return f"{self._policy}, seed {self._seed}"

    def _show_title(self) -> None:
        # Until Ray sets it again: the dashboard's list of processes shows who is being trained.
        ray._raylet.setproctitle(f"ray::{self._title()}")  # type: ignore[attr-defined]

    def forget(self) -> None:
        """Lets go of the student."""
        self._trainer, self._reports = None, iter(())
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _trained(
        self, trainer: StudentTrainer, kept: dict[str, Any] | None
    ) -> Iterator[EpochReport]:
        if kept is not None:
            yield EpochReport(**kept["report"])
        for report in trainer.epochs():
            if parallel.rank() == 0:
                self._save(trainer, report)
            yield report

    def _save(self, trainer: StudentTrainer, report: EpochReport) -> None:
        content = {
            "origin": self._origin,
            "batch_size": trainer.recipe.batch_size,
            "report": report.as_dict(),
            "state": trainer.state_dict(),
        }
        with self._checkpoints.writing(self._checkpoint()) as temporary:
            torch.save(content, temporary)

    def _kept(self) -> dict[str, Any] | None:
        """The checkpoint of this very student, where there is one. Raises StorageError for one that
        is broken, which is no fault of the student and no reason to begin it anew unasked."""
        name = self._checkpoint()
        file = self._checkpoints.reading(name)
        if file is None:
            return None
        with file:
            try:
                kept = torch.load(file, weights_only=True, map_location=self._device)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever a broken file makes torch raise
                said = "is no checkpoint that can be read: remove it, and its student begins anew"
                raise StorageError(f"{self._checkpoints}/{name}", said) from None
        return kept if kept["origin"] == self._origin else None

    def _checkpoint(self) -> str:
        return checkpoint_name(self._policy, self._seed, self._total_epochs)

    def _keep(self, trainer: StudentTrainer, report: EpochReport) -> None:
        assert self._students is not None
        name = f"{self._policy.identity}-{self._seed}-{self._kind}"
        content = {
            "student": {name: value.cpu() for name, value in trainer.outcome.state_dict().items()},
            "validation_accuracy": report.validation_accuracy,
        }
        with self._students.writing(f"{name}.pt") as temporary:
            torch.save(content, temporary)

    def _device_name(self) -> str:
        return torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"

    def _start(self) -> nn.Module | None:
        """The network to quantize; None is the teacher."""
        network, classes = self._student.network, self._splits.num_classes
        if network is None:
            return None
        if self._weights is not None:
            return network_from_arrays(self._weights, network, classes).to(self._device)
        fresh = build_network(network.name, classes, width=network.width, seed=self._seed)
        return fresh.to(self._device)


class ProbeTrial(tune.Trainable):
    """Distils a student for `epochs` epochs under the policy in its config, a report per epoch;
    where there is a folder for `students`, this is promotion.

    The config holds `policy` (JSON), `seed`, `cpus` and `gpus`. What would repeat itself, a
    diverging loss for example, is a result with `failure` set and no figures; only what befalls the
    worker from outside is left to Tune, which retries it.
    """

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        *,
        shared: Shared,
        epochs: int,
        students: Path | Store | None = None,
    ) -> None:
        device = "cuda" if config["gpus"] > 0 else "cpu"
        self._student = Distillation(shared, epochs, students, cpus=config["cpus"], device=device)
        self._name = f"students of {shared.run}, one after the other"

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        # Anything but True loses a slot of the concurrency limit for good, so nothing here may
        # fail: the next student is made in `step`.
        self.config = new_config
        self._student.forget()
        return True

    def step(self) -> dict[str, Any]:
        try:
            return self._next_epoch()
        except StorageError:  # nothing that the student could help
            raise
        except Exception as error:
            return failed(reason(error))

    def _next_epoch(self) -> dict[str, Any]:
        """Raises what training raises. What is too much for the memory is tried once more, from the
        beginning and with half the batch."""
        student, policy = self._student, policy_from_json(self.config["policy"])
        try:
            if not student.begun:
                student.begin(policy, self.config["seed"])
            return student.next_epoch()
        except torch.OutOfMemoryError:
            if not student.whole_batch:
                raise
        student.forget()  # here the exception no longer holds on to its frames
        student.begin(policy, self.config["seed"], halved=True)
        return student.next_epoch()

    # Tune asks for checkpoints of its own at times; there is nothing that ours do not hold.
    def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    def load_checkpoint(self, checkpoint_dir: str) -> None: ...  # type: ignore[override]

    # The name of the actor on Ray's dashboard, which is asked for when it is made and never again:
    # it is that of no student, since there will be others.
    def __repr__(self) -> str:
        return self._name


def _digest(state: Mapping[str, np.ndarray]) -> str:
    """Of the weights themselves: the file that they came from may be gone."""
    digest = hashlib.blake2b(digest_size=8)
    for name, array in state.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def checkpoint_name(policy: Policy, seed: int, epochs: int) -> str:
    """The file in which a student that is being trained is kept."""
    return f"{policy.identity}-{seed}-{epochs}.pt"


def reason(error: Exception) -> str:
    """What made a student fail, which would make it fail again: training that went wrong, or, with
    its place, a mistake in a network or loss of a user's or in our code."""
    said = f"{type(error).__name__}: {error}"
    return said if isinstance(error, DivergedError | UserError) else f"{said} ({_place(error)})"


def _place(error: Exception) -> str:
    """Where `error` was raised: `file.py, line 3`."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def failed(reason: str) -> dict[str, Any]:
    """The last result of a trial that cannot go on."""
    return {**dict.fromkeys(FIGURES, math.nan), "failure": reason, "done": True}
