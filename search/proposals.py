"""Which policy is tried next: Optuna's samplers, asked so that a search can be resumed.

Every proposal has a sampler of its own, seeded by the search's seed and the trial's number. What it
proposes follows from the trials that the study holds and from nothing else, so a study that was
filled from the ledger goes on as the first one would have, to the last digit.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search.config import ExploreConfig
from search.ledger import Ledger, Trial
from search.results import FINISHED, STOPPED
from spaces import Policy, PolicySpace, randomness

DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
REPEATED_PROPOSALS = 30  # of the sampler's, and ten times as many random ones


class Proposals:
    """Policies for trials 0, 1, ...: those of `first`, then what the sampler makes of the past.

    No policy is proposed twice. A trial that the scheduler stopped is told to Optuna as pruned, one
    without a number as failed.
    """

    def __init__(self, config: ExploreConfig, space: PolicySpace, first: Sequence[Policy]) -> None:
        self._config, self._space = config, space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction=DIRECTIONS[config.mode])
        self._first = list({p.on(space.base).identity: p for p in first}.values())
        self._running: dict[str, optuna.Trial] = {}  # by the id of ours
        self._known: set[str] = set()  # identities of policies
        self._count = 0

    def relive(self, ledger: Ledger) -> None:
        """Takes in what the ledger tells of probes, which the study has not seen yet."""
        for event, trial in ledger.history:
            if trial.stage != "probe":
                continue
            if event == "ended":
                self.tell(trial)
            else:
                self._begun(trial, self._asked(trial.params))

    def propose(self) -> Trial | None:
        """The next trial; None where policies that are new could not be found."""
        for attempt, asked in self._asked_often(self._count):
            policy = self._space.suggest(asked)
            if policy.identity not in self._known:
                trial = Trial(f"{self._count:05d}", "probe", policy, self._config.seed)
                self._begun(trial, asked)
                return replace(trial, params=asked.params, proposals=attempt)
            # Failed trials are not learned from: telling the twin's value again would draw the
            # sampler to where it has been.
            self._study.tell(asked, state=TrialState.FAIL)
        return None

    def tell(self, trial: Trial) -> None:
        """Tells the study how a trial that was proposed or relived has ended."""
        asked = self._running.pop(trial.id)
        values = trial.values(self._config.objective)
        last = max(trial.epochs, default=0)
        if trial.status not in (FINISHED, STOPPED) or last not in values:
            self._study.tell(asked, state=TrialState.FAIL)
            return
        for epoch, value in values.items():
            asked.report(value, epoch)
        if trial.status == FINISHED:
            self._study.tell(asked, values[last])
        else:
            self._study.tell(asked, state=TrialState.PRUNED)  # with its last value

    def _begun(self, trial: Trial, asked: optuna.Trial) -> None:
        self._running[trial.id] = asked
        self._known.add(trial.policy.identity)
        self._count += 1

    def _asked_often(self, number: int) -> Iterable[tuple[int, optuna.Trial]]:
        if number < len(self._first):
            yield 1, self._asked(self._space.params(self._first[number]))
            return
        for attempt in range(1, 11 * REPEATED_PROPOSALS + 1):
            seed = randomness.key(self._config.seed, number, attempt, "proposal") % 2**32
            random = attempt > REPEATED_PROPOSALS
            self._study.sampler = (
                optuna.samplers.RandomSampler(seed) if random else _sampler(self._config, seed)
            )
            yield attempt, self._study.ask()

    def _asked(self, params: Any) -> optuna.Trial:
        """A running trial that has `params`."""
        self._study.sampler = optuna.samplers.RandomSampler(0)  # which nothing is left to
        self._study.enqueue_trial(dict(params))
        trial = self._study.ask()
        self._space.suggest(trial)
        return trial


def _sampler(config: ExploreConfig, seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        # Grouping is marked experimental; a conditional space needs it to be sampled jointly.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=config.random_trials,
        )
