"""What a run has come to so far, read from its files while a search may be writing them."""

import time
from collections import Counter
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from search.config import SearchConfig, load_config
from search.ledger import Ledger, Stage, Trial, read, worked_on
from search.results import FINISHED, ranked
from search.run_folder import RunFolder

RUNNING = "running"


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
        """Whether there is a verdict on all of it."""
        return self.ledger.concluded

    @property
    def trials(self) -> list[Trial]:
        """Those of the stage that have begun, in that order."""
        return self.ledger.of(self.stage)

    @property
    def states(self) -> dict[str, int]:
        """How many trials of the stage are running, finished, stopped and failed."""
        return dict(Counter(trial.status or RUNNING for trial in self.trials))

    @property
    def running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status is None]

    @property
    def epochs(self) -> int:
        """That a trial of the stage has."""
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
        """For machines; times in seconds."""
        best, objective = self.best, self.config.search.objective
        return {
            "run": str(self.folder.path),
            "stage": self.stage,
            "trials": self.total,
            "states": self.states,
            "working": self.working,
            "done": self.done,
            "objective": objective,
            "best": None if best is None else best.figures[objective],
            "best_policy": None if best is None else str(best.policy),
            "seconds": self.ledger.seconds_worked(),
            "seconds_left": self.seconds_left,
        }


def standing(folder: RunFolder) -> Standing:
    """How far the run in `folder` is.

    Raises UserError where its ledger or config cannot be read.
    """
    ledger = read(folder.ledger)
    return Standing(folder, load_config(folder.config), ledger, worked_on(folder.ledger))
