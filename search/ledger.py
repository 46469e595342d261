"""What happened in a run, line by line: the one truth from which it is resumed.

Every line of `trials.jsonl`, whose format is in search/ledger_lines.py, was synced to disk before
the search went on. In each `sitting` of a process at the run, a `stage` came after another, trials
`began` (again, after a loss), told an `epoch` at a time what they had, and `ended`, until the run
was `concluded`. Ray Tune's own state is never read: what is not in here has not happened.
"""

import fcntl
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from search.ledger_lines import (
    BeganLine,
    ConcludedLine,
    EndedLine,
    EpochLine,
    Line,
    SittingLine,
    Stage,
    StageLine,
    parsed,
    written,
)
from search.results import FAILED, FINISHED, STOPPED, FullLength, Row
from spaces.errors import UserError
from spaces.policy import Policy
from trainers.student import FIGURES

LOST = "the worker was lost"  # how the failure of a trial begins that befell it from outside
PLACES = ("node", "device", "batch_size")


@dataclass
class Trial:
    """One student as the ledger tells it. `status` is None until it ended, and then finished,
    stopped or failed."""

    id: str
    stage: Stage
    policy: Policy
    seed: int
    params: Mapping[str, Any] = field(default_factory=dict)
    proposals: int = 1  # how many the sampler made for this trial; all but the last were known
    attempts: int = 0  # how often it was begun
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds_by_gpus: dict[float | None, float] = field(default_factory=dict)  # of all epochs
    places: dict[str, Any] = field(default_factory=dict)  # by PLACES, of the last epoch
    code_version: str = ""  # of the code that began it last
    status: str | None = None
    failure: str | None = None
    test_accuracy: float = math.nan
    began_at: float = math.nan  # the last time, in seconds since 1970
    ended_at: float = math.nan

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        return sum(self.seconds_by_gpus.values())

    def gpu_seconds(self, otherwise: float) -> float:
        """Seconds times GPUs; `otherwise` is taken for epochs of earlier versions, whose ledgers
        do not say how many GPUs a trial had."""
        by_gpus = self.seconds_by_gpus.items()
        return sum((otherwise if gpus is None else gpus) * s for gpus, s in by_gpus)

    @property
    def lost(self) -> bool:
        """Whether it failed by no fault of its own, so that another sitting may try it again."""
        return self.status == FAILED and (self.failure or "").startswith(LOST)

    @property
    def figures(self) -> dict[str, float]:
        """Of the last epoch; empty without one."""
        return self.epochs[max(self.epochs)] if self.epochs else {}

    def values(self, objective: str) -> dict[int, float]:
        """What the epochs had for `objective`, by epoch, where it was a number."""
        found = {
            epoch: self.epochs[epoch].get(objective, math.nan) for epoch in sorted(self.epochs)
        }
        return {epoch: value for epoch, value in found.items() if math.isfinite(value)}

    def row(self) -> Row:
        """This trial, which has ended, as a row of the ranked table."""
        assert self.status is not None
        return Row(
            trial_id=self.id,
            status=self.status,
            policy=self.policy,
            params=self.params,
            figures={name: self.figures[name] for name in FIGURES if name in self.figures},
            seconds=self.seconds if self.epochs else math.nan,
            failure=self.failure,
            seed=self.seed,
            code_version=self.code_version,
            attempts=self.attempts,
            **self.places,
        )

    def full_length(self) -> FullLength:
        """What this promoted student, which finished, had in the end."""
        return FullLength(
            seed=self.seed,
            validation_accuracy=self.figures["validation_accuracy"],
            validation_loss=self.figures["validation_loss"],
            test_accuracy=self.test_accuracy,
        )


class Ledger:
    """The trials of a run, by what its file says and what is added to it.

    `trials` are in the order in which they first began. `history` has them where they first began
    and where they ended, in the order of the file: what a sampler has lived through.
    """

    def __init__(
        self, file: IO[bytes], path: Path, publish: Callable[[bytes], None] | None = None
    ) -> None:
        self._file, self.path, self._publish = file, path, publish
        self.trials: dict[str, Trial] = {}
        self._code_version = ""
        self._sittings: list[tuple[float, float]] = []  # seconds since 1970: first and last line
        self.stage: tuple[Stage, int] = ("probe", 0)  # the latest one, and how many trials it takes
        self.epochs: int | None = None  # of its trials, where the ledger says so
        self._gpus: float | None = None  # of each of them
        self.concluded = False  # with a verdict on all that is in here, but for a validation
        self.validating = False  # whether the latest sitting is there for that alone
        self._had_verdict = False  # before the latest sitting
        self.history: list[tuple[Literal["began", "ended"], Trial]] = []
        *lines, torn = file.read().split(b"\n")  # the last by a kill: it was never relied on
        for number, line in enumerate(lines, start=1):
            try:
                self._take(parsed(line))
            except (ValueError, KeyError):
                raise UserError(f"{path}: line {number} is not a line of a ledger") from None
        file.seek(-len(torn), os.SEEK_END)
        file.truncate()

    def sitting(self, versions: Mapping[str, str]) -> None:
        """Notes that a process begins to work on the run, with these versions of packages."""
        self._add(SittingLine(versions=dict(versions), at=_now()))

    def begin_stage(
        self, stage: Stage, trials: int, *, epochs: int | None = None, gpus: float | None = None
    ) -> None:
        """Notes that a stage begins which takes this many trials, those that ended included, each
        of so many `epochs` and with so many `gpus`."""
        self._add(StageLine(stage=stage, trials=trials, epochs=epochs, gpus=gpus, at=_now()))

    def conclude(self) -> None:
        """Notes that there is a verdict on all that is in here."""
        self._add(ConcludedLine(at=_now()))

    def seconds(self) -> float:
        """How long the run has been worked on: up to the last line of former sittings, and up to
        now in this one."""
        *former, (began, _) = self._sittings
        return sum(last - first for first, last in former) + time.time() - began

    def seconds_worked(self) -> float:
        """How long the run has been worked on, up to the last line of every sitting."""
        return sum(last - first for first, last in self._sittings)

    def of(self, stage: Stage) -> list[Trial]:
        """The trials of one stage, in the order in which they began."""
        return [trial for trial in self.trials.values() if trial.stage == stage]

    def validated(self, epochs: int) -> list[Trial]:
        """The probes of validations that are so long, in the order in which they began."""
        return [trial for trial in self.of("validation") if trial.id.endswith(f"-probe-{epochs}")]

    def students(self, kind: str) -> list[Trial]:
        """The promoted students of one `PromotionConfig.kind`, in the order in which they began."""
        return [trial for trial in self.of("promotion") if trial.id.endswith(f"-{kind}")]

    def began(self, trial: Trial) -> Trial:
        """Notes that `trial` begins, or begins again; returns the one that the ledger keeps."""
        self._add(
            BeganLine(
                trial=trial.id,
                stage=trial.stage,
                policy=trial.policy,
                seed=trial.seed,
                params=dict(trial.params),
                proposals=trial.proposals,
                at=_now(),
            )
        )
        return self.trials[trial.id]

    def reopen(self, trials: Iterable[Trial]) -> None:
        """Takes those of `trials` that were `lost` as unfinished, to begin again in this sitting.
        The file has them as failed until they do."""
        for trial in trials:
            if trial.lost:
                self._reopen(trial)

    def epoch(
        self,
        trial: Trial,
        figures: Mapping[str, float],
        *,
        seconds: float,
        node: str,
        device: str,
        batch_size: int,
    ) -> None:
        """Notes the figures of an epoch, which are numbers and have `epoch`. What was told before
        is not told again."""
        if trial.epochs.get(int(figures["epoch"])) != figures:
            self._add(
                EpochLine(
                    trial=trial.id,
                    figures=dict(figures),
                    seconds=seconds,
                    node=node,
                    device=device,
                    batch_size=batch_size,
                    at=_now(),
                )
            )

    def ended(
        self,
        trial: Trial,
        status: str,
        failure: str | None = None,
        *,
        test_accuracy: float | None = None,
    ) -> None:
        """Notes that `trial` is over."""
        self._add(
            EndedLine(
                trial=trial.id,
                status=status,
                failure=failure,
                test_accuracy=test_accuracy,
                at=_now(),
            )
        )

    def _add(self, line: Line) -> None:
        left = whole = written(line)
        end = self._file.seek(0, os.SEEK_END)  # not tell(), which is beyond it after a torn write
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
            if self._publish is not None:
                self._publish(whole)
        except OSError:
            self._file.truncate(end)  # half a line would spoil the next one
            raise
        self._take(line)

    def _take(self, line: Line) -> None:
        """Raises KeyError for a trial that never began, ValueError for one that ended before."""
        if isinstance(line, SittingLine):
            self._sittings.append((line.at, line.at))
            self._code_version = line.versions.get("augury", "")
            self._had_verdict, self.concluded, self.validating = self.concluded, False, False
            return
        if self._sittings:
            self._sittings[-1] = (self._sittings[-1][0], line.at)
        match line:
            case ConcludedLine():
                self.concluded = True
            case StageLine():
                self.stage = line.stage, line.trials
                self.epochs, self._gpus = line.epochs, line.gpus
                if line.stage == "validation":  # which adds to a search and takes nothing back
                    self.concluded, self.validating = self._had_verdict, True
            case BeganLine():
                self._begin(line)
            case EpochLine():
                trial = self.trials[line.trial]
                trial.epochs[int(line.figures["epoch"])] = line.figures
                before = trial.seconds_by_gpus.get(self._gpus, 0.0)
                trial.seconds_by_gpus[self._gpus] = before + line.seconds
                trial.places = {name: getattr(line, name) for name in PLACES}
            case EndedLine():
                self._end(self.trials[line.trial], line)

    def _begin(self, line: BeganLine) -> None:
        trial = self.trials.get(line.trial)
        if trial is None:
            trial = Trial(
                id=line.trial,
                stage=line.stage,
                policy=line.policy,
                seed=line.seed,
                params=line.params,
                proposals=line.proposals,
            )
            self.trials[trial.id] = trial
            self.history.append(("began", trial))
        elif trial.status is not None:
            self._reopen(trial)
        trial.attempts += 1
        trial.began_at = line.at
        trial.code_version = self._code_version

    def _end(self, trial: Trial, line: EndedLine) -> None:
        if trial.status is not None:
            raise ValueError(f"{trial.id} ended before")
        trial.status, trial.failure, trial.ended_at = line.status, line.failure, line.at
        trial.test_accuracy = math.nan if line.test_accuracy is None else line.test_accuracy
        self.history.append(("ended", trial))

    def _reopen(self, trial: Trial) -> None:
        self.history.remove(("ended", trial))  # the sampler is to hear of the end to come alone
        trial.status = trial.failure = None


def _now() -> float:
    return round(time.time(), 3)


@contextmanager
def opened(path: Path, publish: Callable[[bytes], None] | None = None) -> Iterator[Ledger]:
    """The ledger at `path`, made where there is none, for this process alone. A line is synced and
    given to `publish` before it counts.

    Raises UserError where it cannot be written, where another process has it, and where a line that
    is not the last is broken.
    """
    try:
        opening = path.open("a+b", buffering=0)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    with opening as file:
        if not _locked(file, fcntl.LOCK_EX, tries=5):
            raise _taken(path)
        file.seek(0)
        yield Ledger(file, path, publish)


def read(path: Path) -> Ledger:
    """The ledger at `path` as it is now, also while a process works on it; nothing may be added.

    Raises UserError where it cannot be read, and where a line that is not the last is broken.
    """
    try:
        return Ledger(io.BytesIO(path.read_bytes()), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def worked_on(path: Path) -> bool:
    """Whether a process has the ledger at `path` open, as far as this machine can know."""
    try:
        with path.open("rb") as file:
            return not _locked(file, fcntl.LOCK_SH)
    except OSError:
        return False


def require_free(path: Path) -> None:
    """Raises UserError where a process has the ledger at `path` open, before anything that takes
    time. Who goes on is not sure of it until the ledger is `opened`."""
    if worked_on(path):
        raise _taken(path)


def _taken(path: Path) -> UserError:
    return UserError(f"{path.parent}: another process is searching in this folder")


def _locked(file: IO[bytes], kind: int, tries: int = 1) -> bool:
    """Whether the lock could be had; who only looks whether it can holds it for a moment."""
    for attempt in range(tries):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt + 1 < tries:
                time.sleep(0.1)
    return False


def outcome(trial: Trial, epochs: int) -> str:
    """How a trial that is over by itself or by the scheduler ended."""
    if not trial.epochs:
        return FAILED
    return FINISHED if max(trial.epochs) >= epochs else STOPPED
