"""A run as TensorBoard shows it: event files, each of which says what the ledger says.

A file per trial would cost as much as ten lines of the ledger and leave thousands of them, so all
probes share one. A file is begun anew by each process that works on the run, with all that is
known: it cannot miss what another one had no time to write.
"""

import math
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from search.ledger import Ledger, Trial
from search.results import FAILED

SECONDS = 2  # between two writes to disk, each of which is synced


class EventFile:
    """The only one in `folder`; what was there is removed. Raises OSError, as `add` and `close`."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._writer = EventsWriter(str(folder / "events"))
        [self.path] = folder.iterdir()
        self._next_flush = 0.0

    def add(self, figures: Mapping[str, float], step: int, at: float) -> None:
        """A point for each of the figures; `at` is in seconds since 1970."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self.add_summary(Summary(value=values), step, at)

    def add_summary(self, summary: Summary, step: int, at: float) -> None:
        self._writer.write_event(Event(wall_time=at, step=step, summary=summary))
        if time.monotonic() >= self._next_flush:
            self._writer.flush()
            self._next_flush = time.monotonic() + SECONDS

    def close(self) -> None:
        self._writer.close()


class EventFiles:
    """Those of a run. `probes/` has a point per probe for each figure of its last epoch, the step
    is the number of the trial. `students/` has a folder for each student of full length, named by
    its policy and the trial: a point per epoch, and in the end what TensorBoard calls hparams.

    A file that is complete for now is given to `publish`.
    """

    def __init__(self, folder: Path, ledger: Ledger, publish: Callable[[Path], None]) -> None:
        self._folder, self._ledger, self._publish = folder, ledger, publish
        self._probes: EventFile | None = None
        self._students: dict[str, EventFile] = {}

    def began(self, trial: Trial) -> None:
        if trial.stage == "probe" and self._probes is None:
            self._probes = EventFile(self._folder / "probes")
            for known in self._ledger.of("probe"):
                self._add_probe(known)
        elif trial.stage == "promotion" and trial.id not in self._students:
            words = re.sub(r"[^\w .,+=|>-]+", "_", str(trial.policy))[:80]
            file = EventFile(self._folder / "students" / f"{words} {trial.id}")
            self._students[trial.id] = file
            for epoch, figures in trial.epochs.items():
                file.add(figures, epoch, trial.began_at)

    def epoch(self, trial: Trial) -> None:
        if file := self._students.get(trial.id):
            file.add(trial.figures, max(trial.epochs), time.time())

    def ended(self, trial: Trial) -> None:
        if trial.stage == "probe":
            self._add_probe(trial)
        elif file := self._students.pop(trial.id, None):
            if math.isfinite(trial.test_accuracy):
                tested = {"test_accuracy": trial.test_accuracy}
                file.add(tested, max(trial.epochs), trial.ended_at)
                told = {"policy": str(trial.policy), "seed": trial.seed}
                for summary in hparams(told, dict.fromkeys(("validation_accuracy", *tested))):
                    file.add_summary(summary, 0, trial.ended_at)
            file.close()
            self._publish(file.path)

    def close(self) -> None:
        """The end of a stage."""
        for file in (self._probes, *self._students.values()):
            if file is not None:
                file.close()
                self._publish(file.path)
        self._probes = None
        self._students.clear()

    def _add_probe(self, trial: Trial) -> None:
        ended = trial.status is not None and trial.status != FAILED
        if ended and self._probes is not None and trial.figures:
            self._probes.add(trial.figures, int(trial.id), trial.ended_at)
