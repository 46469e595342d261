"""The search: Optuna proposes policies, Ray Tune probes them, the ledger remembers."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from search.config import ExploreConfig, SearchConfig
from search.failures import too_many
from search.ledger import Ledger, Trial
from search.loggers import Callback
from search.proposals import Proposals
from search.results import FINISHED
from search.schedulers import scheduler_for
from search.trainable import Shared
from search.trials import Sitting, run_trials
from search.warm_start import WarmStart
from spaces import PolicySpace


def explore(
    config: SearchConfig,
    shared: Shared,
    space: PolicySpace,
    start: WarmStart,
    *,
    ledger: Ledger,
    folder: Path,
    ended: Callable[[Trial], None],
    loggers: Sequence[Callback] = (),
) -> None:
    """Probes policies, those of `start` before others, until a budget is `spent`. What the ledger
    has already is not done again, what was begun is gone on with.

    Tune's own results go to `folder`.
    """
    search, epochs = config.search, config.search.probe_epochs
    proposals = Proposals(search, space, start)
    proposals.relive(ledger)

    def propose() -> Trial | None:
        return None if spent(config, ledger) else proposals.propose()

    def probe_ended(trial: Trial) -> None:
        proposals.tell(trial)
        ended(trial)

    run_trials(
        shared,
        cluster=config.cluster,
        sitting=Sitting(ledger, epochs, search.objective, probe_ended),
        unfinished=[trial for trial in ledger.of("probe") if trial.status is None],
        propose=propose,
        folder=folder,
        scheduler=scheduler_for(search, ledger),
        loggers=loggers,
    )


def spent(config: SearchConfig, ledger: Ledger) -> str | None:
    """What ends the probing, in words; None while there is something left of everything."""
    search, probes = config.search, ledger.of("probe")
    budget, gpus = search.budget, config.cluster.resources.get("GPU", 0)
    if too_many(probes, search.max_failed_share):
        return "too many probes failed"
    if len(probes) >= search.trials:
        return f"all {search.trials} trials were begun"
    if budget.hours is not None and ledger.seconds() > 3600 * budget.hours:
        return f"search.budget.hours: {budget.hours:g} hours are over"
    if budget.gpu_hours is not None and sum(t.gpu_seconds(gpus) for t in probes) > (
        3600 * budget.gpu_hours
    ):
        return f"search.budget.gpu_hours: {budget.gpu_hours:g} GPU hours are used"
    if budget.target is not None and any(_reached(trial, search) for trial in probes):
        return f"search.budget.target: {search.objective} reached {budget.target:g}"
    return None


def _reached(trial: Trial, search: ExploreConfig) -> bool:
    value = trial.figures.get(search.objective, math.nan)
    assert search.budget.target is not None
    ahead = search.budget.target - value if search.mode == "min" else value - search.budget.target
    return trial.status == FINISHED and ahead >= 0
