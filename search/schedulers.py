"""What stops probes early: Ray's schedulers, filled from the ledger when a search is resumed.

A scheduler goes by the epoch that a trial tells, since Tune's own count begins anew with a worker.
Of a trial that goes on, the last epoch is told again: it is left for the scheduler to decide on.
ASHA's effect on the ranking is in experiments.md.
"""

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from search.config import ExploreConfig
from search.ledger import Ledger, Trial
from spaces import randomness

EPOCH = "epoch"


def scheduler_for(config: ExploreConfig, ledger: Ledger) -> TrialScheduler:
    """The scheduler of `config`, as it was when the ledger's last line was written."""
    known = ledger.of("probe")
    match config.scheduler:
        case "none":
            return FIFOScheduler()
        case "median":
            return Median(config, known)
        case _:
            return Halving(config, known)


def told_before(config: ExploreConfig, trial: Trial) -> dict[int, float]:
    """What the scheduler has seen of a trial, by epoch."""
    values = trial.values(config.objective)
    if trial.status is None and values:
        values.pop(max(values))
    return values


class Halving(AsyncHyperBandScheduler):
    """ASHA, or asynchronous HyperBand: as many brackets as there are first rungs."""

    def __init__(self, config: ExploreConfig, known: Iterable[Trial]) -> None:
        longest, factor = config.probe_epochs, config.stopping.reduction_factor
        grace = min(config.stopping.grace_period, longest)
        rungs = int(math.log(longest / grace) / math.log(factor)) + 1
        super().__init__(
            time_attr=EPOCH,
            metric=config.objective,
            mode=config.mode,
            max_t=longest,
            grace_period=grace,
            reduction_factor=factor,
            brackets=rungs if config.scheduler == "hyperband" else 1,
        )
        self._config = config
        self._known = {trial.id: trial for trial in known}
        for trial in self._known.values():
            if trial.status is not None:
                self._catch_up(trial.id, SimpleNamespace(trial_id=trial.id))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._trial_info[trial.trial_id] = self._bracket(trial.config["trial"])
        self._catch_up(trial.config["trial"], trial)

    def _catch_up(self, name: str, trial: Any) -> None:
        values = told_before(self._config, self._known[name]) if name in self._known else {}
        sign = 1 if self._config.mode == "max" else -1
        for epoch, value in values.items():
            self._bracket(name).on_result(trial, epoch, sign * value)

    def _bracket(self, name: str) -> Any:
        """Drawn as Ray does, a bracket with one more rung e times as often, but by name."""
        weights = [math.exp(len(bracket._rungs)) for bracket in self._brackets]
        draw = randomness.key(self._config.seed, name, "bracket") / 2**64 * sum(weights)
        for bracket, weight in zip(self._brackets, weights, strict=True):
            draw -= weight
            if draw < 0:
                return bracket
        return self._brackets[-1]


class Median(MedianStoppingRule):
    """The median stopping rule, which never pauses a trial and hears every epoch once."""

    def __init__(self, config: ExploreConfig, known: Iterable[Trial]) -> None:
        super().__init__(
            time_attr=EPOCH,
            metric=config.objective,
            mode=config.mode,
            grace_period=config.stopping.grace_period,
        )
        self._config = config
        self._known = {trial.id: trial for trial in known}
        for trial in self._known.values():
            if trial.status is not None:
                self._catch_up(trial.id, trial.id)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        self._catch_up(trial.config["trial"], trial)

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        # Ray would pause the trial for others, by a checkpoint of its own.
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        heard = {told[EPOCH] for told in self._results[trial]}
        if EPOCH in result and result[EPOCH] not in heard:
            super().on_trial_complete(tune_controller, trial, result)

    def _catch_up(self, name: str, key: Any) -> None:
        values = told_before(self._config, self._known[name]) if name in self._known else {}
        if values:
            self._results[key] = [
                {EPOCH: epoch, self._config.objective: value} for epoch, value in values.items()
            ]
