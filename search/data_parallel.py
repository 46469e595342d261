"""A student that several workers of Ray Train distil together, as a trial of Ray Tune.

The trial itself asks for next to nothing and waits. Its workers get a placement group of their own,
all of them at once or none, so students never hold a part of what another one waits for. The first
worker tells of every epoch, and trains on when it was heard: no epoch is saved that the ledger
could still miss when all are killed. What a worker raises ends them all.
"""

import platform
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from uuid import uuid4

import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer, get_device
from ray.tune import PlacementGroupFactory
from ray.util.queue import Empty, Queue

from search.storage import StorageError, Store
from search.trainable import Distillation, Shared, failed, reason
from spaces.policy import policy_from_json
from trainers import parallel

SECONDS_TO_LOOK = 1.0  # between looks at whether the workers are still there
# What the node has a unit of that Ray was begun on, where the run's own process is at home.
HEAD = "node:__internal_head__"


class StudentFailedError(Exception):
    """What one of the workers raised, and would raise again: its reason, and whether batches of
    half the size might do."""

    def __init__(self, reason: str, halve: bool) -> None:
        super().__init__(reason, halve)
        self.reason, self.halve = reason, halve


class WorkersLostError(Exception):
    """Workers, or what Ray keeps beside them, went away while they trained."""


class JointTrial(tune.Trainable):
    """Distils one student by several workers; otherwise as ProbeTrial, whose config it has. `cpus`
    and `gpus`, whole ones, are each worker's."""

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        *,
        shared: Shared,
        epochs: int,
        students: Path | Store | None = None,
    ) -> None:
        self._shared, self._epochs, self._students = shared, epochs, students
        self._run: _Run | None = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([{HEAD: 0.001}])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        try:
            return self._next_epoch(halved=False)
        except StudentFailedError as error:
            if not error.halve:
                return failed(error.reason)
        try:
            return self._next_epoch(halved=True)
        except StudentFailedError as error:
            return failed(error.reason)

    def _next_epoch(self, *, halved: bool) -> dict[str, Any]:
        """What the first worker tells next, of workers that begin where there are none."""
        if self._run is None:
            self._run = run = self._begun(halved)
        else:
            run = self._run
            run.heard.put(None)
        try:
            result = run.next_result()
        except Exception:
            self._run = None
            raise
        if result["done"]:
            run.join()  # the next student needs their places
            self._run = None
        return result

    def _begun(self, halved: bool) -> "_Run":
        told, heard = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
        cpus, gpus = self.config["cpus"], self.config["gpus"]
        # For what Ray Train notes, on this node; checkpoints are ours, and lie elsewhere.
        notes = TemporaryDirectory(prefix="augury-", ignore_cleanup_errors=True)
        trainer = TorchTrainer(
            _train,
            train_loop_config={
                "shared": self._shared,
                "epochs": self._epochs,
                "students": self._students,
                "policy": self.config["policy"],
                "seed": self.config["seed"],
                "cpus": cpus,
                "halved": halved,
                "told": told,
                "heard": heard,
            },
            scaling_config=ScalingConfig(
                num_workers=self._shared.workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=RunConfig(
                name=f"ray-train-{uuid4().hex}",  # one that was there would be gone on with
                storage_path=notes.name,
                failure_config=FailureConfig(max_failures=0),  # Tune tries again, and tells
            ),
        )
        run = _Run(trainer, notes, told, heard)
        run.start()
        return run

    # Tune asks for checkpoints of its own at times; there is nothing that the workers' do not hold.
    def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    def load_checkpoint(self, checkpoint_dir: str) -> None: ...  # type: ignore[override]

    def __repr__(self) -> str:  # the name of the actor on Ray's dashboard
        return f"workers for students of {self._shared.run}"


class _Run(Thread):
    """Workers from their beginning to their end. The first one puts results into `told`, and for
    each but the last it waits until something is put into `heard`."""

    def __init__(
        self, trainer: TorchTrainer, notes: TemporaryDirectory[str], told: Queue, heard: Queue
    ) -> None:
        super().__init__(daemon=True)  # an actor that is stopped need not wait for it
        self._trainer, self._notes, self._told, self.heard = trainer, notes, told, heard
        self._error: Exception = WorkersLostError("they left without a word")

    def next_result(self) -> dict[str, Any]:
        """Waits for it; raises StudentFailedError or WorkersLostError where there will be none."""
        while True:
            over = not self.is_alive()  # asked before the queue is, or a last word might be missed
            try:
                result: dict[str, Any] = self._told.get(block=not over, timeout=SECONDS_TO_LOOK)
                return result
            except Empty:
                if over:
                    raise self._error from None

    def run(self) -> None:
        try:
            with self._notes:
                self._trainer.fit()
        except WorkerGroupError as error:
            failures = error.worker_failures.values()
            reasons = [failure for failure in failures if isinstance(failure, StudentFailedError)]
            self._error = reasons[0] if reasons else WorkersLostError(str(error))
        except Exception as error:
            self._error = WorkersLostError(str(error))


def _train(config: dict[str, Any]) -> None:
    """What every worker does: trains the student, of which the first one tells."""
    device, student = get_device(), None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        student = Distillation(
            config["shared"],
            config["epochs"],
            config["students"],
            cpus=config["cpus"],
            device=str(device),
        )
        began, done = time.monotonic(), False
        _begin_together(student, config, device)
        while not done:
            result = student.next_epoch()
            done = result["done"]
            result["device"] = f"{parallel.world_size()} x {result['device']}"
            result |= {"node": platform.node(), "time_this_iter_s": time.monotonic() - began}
            if parallel.rank() == 0:
                config["told"].put(result)
                if not done:
                    config["heard"].get()
            began = time.monotonic()
    except Exception as error:
        if _from_outside(error):
            raise
        too_big = isinstance(error, torch.OutOfMemoryError)
        halve = too_big and student is not None and student.whole_batch
        raise StudentFailedError(reason(error), halve) from None


def _begin_together(student: Distillation, config: dict[str, Any], device: torch.device) -> None:
    policy = policy_from_json(config["policy"])
    epochs = student.begin(policy, config["seed"], halved=config["halved"])
    # A worker of an attempt that was lost may have lived on, and saved an epoch between two looks.
    everywhere = int(parallel.summed(torch.tensor(epochs, device=device)))
    if everywhere != epochs * parallel.world_size():
        raise WorkersLostError("the workers found checkpoints of different epochs")


def _from_outside(error: Exception) -> bool:
    """Whether `error` is no fault of the student: the storage's, or what a worker hears that waits
    for one who went away."""
    folder = str(Path(torch.distributed.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    outside = isinstance(error, WorkersLostError | StorageError)
    return outside or any(f.filename.startswith(folder) for f in frames)
