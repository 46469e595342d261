"""A search in figures, at the metrics port of the node that runs it, for Prometheus.

Nothing is told by trial: series never end, and a search has thousands.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeVar

from ray import tune
from ray.util.metrics import Counter, Gauge

from search.failures import kind
from search.ledger import Ledger, Trial
from search.ledger_lines import Stage
from search.results import FAILED, FINISHED, STOPPED
from search.standing import RUNNING
from trainers.student import OBJECTIVES

STATES = (RUNNING, FINISHED, STOPPED, FAILED)
# What each figure means, and by what it is told apart, beside the run and its stage.
GAUGES: dict[str, tuple[str, str | None]] = {
    "augury_trials": ("how many are running, finished, stopped, failed", "state"),
    "augury_best_objective": ("the best value of what ranks first", "objective"),
    "augury_best_validation_accuracy": ("a fraction, of any finished trial", None),
    "augury_images_per_second": ("of all running trials together", None),
    "augury_gpu_memory_bytes": ("held by all running trials together", None),
}
COUNTERS: dict[str, tuple[str, str | None]] = {
    "augury_failures": ("failed trials by what failures.kind tells apart", "reason"),
    "augury_epochs": ("epochs of students", None),
}
Figure = TypeVar("Figure", Gauge, Counter)


def exported() -> dict[str, str | None]:
    """The names that Ray gives all figures at the metrics port, and the tag of their own."""
    gauges = {f"ray_{name}": key for name, (_, key) in GAUGES.items()}
    return gauges | {f"ray_{name}_total": key for name, (_, key) in COUNTERS.items()}


@dataclass
class _Student:
    """One that is being trained."""

    trial: Trial
    epochs: int  # that were counted
    gpu_memory: int = 0  # bytes

    def speed(self, otherwise: float) -> float:
        """Images per second of the last epoch; `otherwise` before there is one."""
        return self.trial.figures.get("images_per_second", otherwise)


class Telemetry(tune.Callback):
    """Keeps the figures of one stage of a run up to date with its ledger.

    It has to hear of everything after whoever writes the ledger. All figures have the tags `run`,
    the name of its folder, and `stage`.
    """

    def __init__(self, ledger: Ledger, stage: Stage, objective: str, run: str) -> None:
        self._ledger, self._objective = ledger, objective
        self._running: dict[str, _Student] = {}
        self._best = {objective: math.nan, "validation_accuracy": math.nan}
        self._counts = dict.fromkeys(STATES, 0)
        self._latest_speed = 0.0  # images per second, taken for trials that have told none yet
        tags = {"run": run, "stage": stage}
        self._gauges = {name: _tagged(Gauge, name, *GAUGES[name], tags) for name in GAUGES}
        self._counters = {name: _tagged(Counter, name, *COUNTERS[name], tags) for name in COUNTERS}
        for trial in ledger.of(stage):
            self._count(trial)
        self._tell()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        known = self._known(trial)
        self._running.setdefault(known.id, _Student(known, len(known.epochs)))
        self._tell()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        student = self._running[self._known(trial).id]
        now = len(student.trial.epochs)
        if now > student.epochs:  # Ray refuses to count nothing
            self._counters["augury_epochs"].inc(now - student.epochs)
        student.epochs, student.gpu_memory = now, result.get("gpu_memory_bytes", 0)
        self._latest_speed = student.speed(otherwise=self._latest_speed)
        self._tell()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._over(self._known(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._over(self._known(trial))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._running.clear()
        self._tell()

    def _known(self, trial: Any) -> Trial:
        return self._ledger.trials[trial.config["trial"]]

    def _over(self, trial: Trial) -> None:
        # One without a status is left to be gone on with.
        if self._running.pop(trial.id, None) is not None and trial.status is not None:
            self._count(trial)
            if trial.status == FAILED:
                tags = {"reason": kind(trial.failure or "")}
                self._counters["augury_failures"].inc(tags=tags)
        self._tell()

    def _count(self, trial: Trial) -> None:
        if trial.status is None:
            return
        self._counts[trial.status] += 1
        for figure, best in self._best.items():
            value = trial.figures.get(figure, math.nan)
            better = min if OBJECTIVES[figure] == "min" else max
            if trial.status == FINISHED and math.isfinite(value):
                self._best[figure] = value if math.isnan(best) else better(best, value)

    def _tell(self) -> None:
        running, gauges = self._running.values(), self._gauges
        for state, count in (self._counts | {RUNNING: len(running)}).items():
            gauges["augury_trials"].set(count, {"state": state})
        if math.isfinite(best := self._best[self._objective]):
            gauges["augury_best_objective"].set(best, {"objective": self._objective})
        if math.isfinite(best := self._best["validation_accuracy"]):
            gauges["augury_best_validation_accuracy"].set(best)
        speed = sum(student.speed(otherwise=self._latest_speed) for student in running)
        gauges["augury_images_per_second"].set(speed)
        gauges["augury_gpu_memory_bytes"].set(sum(student.gpu_memory for student in running))


def _tagged(
    figure: type[Figure], name: str, meaning: str, key: str | None, tags: dict[str, str]
) -> Figure:
    made = figure(name, meaning, tag_keys=(*tags, *([key] if key else [])))
    made.set_default_tags(tags)
    return made
