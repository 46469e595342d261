"""The search: Optuna proposes policies, Ray Tune probes them, the ledger remembers."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from search.config import ExploreConfig, SearchConfig
from search.failures import too_many
from search.ledger import Ledger, Trial
from search.proposals import Proposals
from search.trainable import Shared
from search.trials import Sitting, run_trials
from spaces import Policy, PolicySpace


def scheduler(config: ExploreConfig) -> TrialScheduler:
    """What stops probes early. ASHA's effect on the ranking is in experiments.md."""
    if config.scheduler == "none":
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        max_t=config.probe_epochs,
        grace_period=min(config.asha.grace_period, config.probe_epochs),
        reduction_factor=config.asha.reduction_factor,
    )


def explore(
    config: SearchConfig,
    shared: Shared,
    space: PolicySpace,
    first: Sequence[Policy],
    *,
    ledger: Ledger,
    folder: Path,
    ended: Callable[[Trial], None],
) -> None:
    """Probes policies, those of `first` before others, until the ledger has
    `config.search.trials` of them or too many failed. What it has already is not done again, what
    was begun is gone on with.

    Tune's own results go to `folder`.
    """
    search, epochs = config.search, config.search.probe_epochs
    proposals = Proposals(search, space, first)
    proposals.relive(ledger)

    def propose() -> Trial | None:
        probes = ledger.of("probe")
        if len(probes) >= search.trials or too_many(probes, search.max_failed_share):
            return None
        return proposals.propose()

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
        scheduler=scheduler(search),
        objective=search.objective,
        mode=search.mode,
    )
