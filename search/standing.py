"""What a run has come to so far, read from its files while a search may be writing them."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

from search.config import SearchConfig, load_config
from search.failures import kind
from search.ledger import Ledger, Trial, read
from search.ledger_lines import Stage
from search.ranking import rows_of
from search.results import FAILED, FINISHED, Row, ranked
from search.run_folder import RunFolder

RUNNING = "running"
POINTS = 60  # of the history, at most, that `as_dict` gives
PAUSE = 1.0  # seconds between two looks at a run, at least

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Standing:
    """A run at a moment: the trials of its present stage, and the best of its probes."""

    folder: RunFolder
    config: SearchConfig
    ledger: Ledger
    working: bool  # whether a process works on it, as far as this machine can know

    @property
    def stage(self) -> Stage:
        """The one that it is in, or came to last."""
        return self.ledger.stage[0]

    @property
    def total(self) -> int:
        """Trials of the stage, those included that have not begun."""
        return self.ledger.stage[1]

    @property
    def done(self) -> bool:
        """Whether there is a verdict on all of it, and nobody validates it now."""
        return self.ledger.concluded and not (self.working and self.ledger.validating)

    @property
    def over(self) -> bool:
        """Whether nothing will change by itself: it is done, or nobody works on it."""
        return self.done or not self.working

    @property
    def trials(self) -> list[Trial]:
        """Those of the stage that have begun, in that order."""
        if self.stage == "promotion":  # students of another length may be there, too
            return self.ledger.students(self.config.promotion.kind)
        if self.stage == "validation" and self.ledger.epochs is not None:
            return self.ledger.validated(self.ledger.epochs)
        return self.ledger.of(self.stage)

    def rows(self) -> list[Row]:
        """The ranked table as it is at this moment."""
        return rows_of(self.ledger, self.config)

    @property
    def states(self) -> dict[str, int]:
        """How many trials of the stage are running, finished, stopped and failed."""
        return dict(Counter(trial.status or RUNNING for trial in self.trials))

    @property
    def running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status is None]

    @property
    def failures(self) -> dict[str, int]:
        """How many trials of the stage failed, by the kind of failure."""
        failed = (trial for trial in self.trials if trial.status == FAILED)
        return dict(Counter(kind(trial.failure or "") for trial in failed))

    @property
    def last_failure(self) -> str | None:
        """What the trial of the stage that failed last had to say, and its policy."""
        ended = (trial for event, trial in reversed(self.ledger.history) if event == "ended")
        failed = (t for t in ended if t.stage == self.stage and t.status == FAILED)
        return next((f"{trial.policy}: {trial.failure}" for trial in failed), None)

    @property
    def epochs(self) -> int:
        """That a trial of the stage has."""
        if self.ledger.epochs is not None:
            return self.ledger.epochs
        search, promotion = self.config.search, self.config.promotion
        return search.probe_epochs if self.stage == "probe" else promotion.epochs

    @property
    def best(self) -> Trial | None:
        """The finished probe that is first by all objectives."""
        by_id = {t.id: t for t in self.ledger.of("probe") if t.status == FINISHED}
        rows = ranked((t.row() for t in by_id.values()), self.config.search.directions)
        first = next((r for r in rows if r.has(self.config.search.objective)), None)
        return None if first is None else by_id[first.trial_id]

    @property
    def history(self) -> list[float]:
        """The best value of the objective after each finished probe."""
        search = self.config.search
        best = min if search.mode == "min" else max
        values: list[float] = []
        for event, trial in self.ledger.history:
            if event == "ended" and trial.stage == "probe" and trial.status == FINISHED:
                value = trial.figures.get(search.objective)
                if value is not None:
                    values.append(best(values[-1], value) if values else value)
        return values

    @property
    def seconds_left(self) -> float | None:
        """Of the stage, by the trials that have ended and as many at a time as run now; None
        where there is nothing to go by."""
        if self.done:
            return 0.0
        ended = [trial for trial in self.trials if trial.status is not None]
        if not ended or not self.running:
            return None
        each = fmean(trial.ended_at - trial.began_at for trial in ended)
        begun = sum(self._share_done(trial, each) for trial in self.running)
        return max(self.total - len(ended) - begun, 0.0) * each / len(self.running)

    def _share_done(self, trial: Trial, each: float) -> float:
        by_epochs = max(trial.epochs, default=0) / self.epochs
        by_time = (time.time() - trial.began_at) / each if each else 0.0
        return min(max(by_epochs, min(by_time, by_epochs + 1 / self.epochs)), 1.0)

    def as_dict(self) -> dict[str, Any]:
        """For machines; times in seconds, since 1970 where they are `_at`."""
        best, objective = self.best, self.config.search.objective
        return {
            "run": str(self.folder),
            "stage": self.stage,
            "trials": self.total,
            "states": self.states,
            "working": self.working,
            "done": self.done,
            "objective": objective,
            "best": None if best is None else best.figures[objective],
            "best_policy": None if best is None else str(best.policy),
            "history": _thinned(self.history),
            "epochs": self.epochs,
            "running": [
                {
                    "trial": trial.id,
                    "policy": str(trial.policy),
                    "epoch": max(trial.epochs, default=0),
                    "began_at": trial.began_at,
                }
                for trial in self.running
            ],
            "failures": self.failures,
            "last_failure": self.last_failure,
            "seconds": self.ledger.seconds_worked(),
            "seconds_left": self.seconds_left,
        }


def _thinned(values: list[float]) -> list[float]:
    """The last of every so many `values`, the very last included."""
    step = -(-len(values) // POINTS)
    return values[::-1][:: max(step, 1)][::-1]


def standing(folder: RunFolder) -> Standing:
    """How far the run in `folder` is.

    Raises UserError where its ledger or config cannot be read.
    """
    working = folder.is_worked_on()  # before: whoever ended since has written all that there is
    return Standing(folder, load_config(folder.config), read(folder.ledger), working)


def look_at(folder: RunFolder) -> Callable[[], Standing]:
    """`standing` for who looks often: a ledger that has not grown is not read again."""
    seen: dict[int, Standing] = {}  # by the size of the ledger, the latest

    def look() -> Standing:
        folder.refresh()
        working = folder.is_worked_on()
        size = folder.ledger.stat().st_size if folder.ledger.exists() else 0
        if size not in seen:
            seen.clear()
            seen[size] = standing(folder)
        return replace(seen[size], working=working)

    return look


def until(over: Callable[[Seen], bool], look: Callable[[], Seen]) -> Iterator[Seen]:
    """What `look` gives, again and again, the first that is `over` included."""
    while True:
        began = time.monotonic()
        seen = look()
        yield seen
        if over(seen):
            return
        # However long the ledger grows, looking at it takes a tenth of the time.
        time.sleep(max(PAUSE, 9 * (time.monotonic() - began)))
