"""Which policy is tried next: Optuna's samplers, asked so that a search can be resumed.

Every proposal has a sampler of its own, seeded by the search's seed and the trial's number. What it
proposes follows from the trials that the study holds and from nothing else, so a study that was
filled from the ledger goes on as the first one would have, to the last digit.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search.config import ExploreConfig
from search.ledger import Ledger, Trial
from search.memory import Memory
from search.results import FINISHED, STOPPED
from search.warm_start import WarmStart
from spaces import PolicySpace, randomness
from spaces.flat import FlatSpace

DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
FLAT = ("gp", "cmaes", "qmc")  # searchers that know numbers alone
NEIGHBOURS = 300  # at most, ever farther away, of a proposal that was known
NEAR = 10  # neighbours that differ in as many parameters


class Proposals:
    """Policies for trials 0, 1, ...: those of `start`, then what the sampler makes of the past and
    of what was known before.

    No policy is proposed twice, nor one that was known before: where the sampler repeats itself, a
    neighbour of what it wanted is taken. A trial that the scheduler stopped
    is told to Optuna as pruned, one without a number as failed.
    """

    def __init__(self, config: ExploreConfig, space: PolicySpace, start: WarmStart) -> None:
        self._config = config
        self._space = FlatSpace(space) if config.searcher in FLAT else space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = [DIRECTIONS[mode] for mode in config.directions.values()]
        # Several objectives have no best BEST: their fronts need all trials.
        one = config.searcher == "tpe" and len(directions) == 1
        self._study = optuna.create_study(
            directions=directions, storage=Memory(directions[0]) if one else None
        )
        self._first = list({p.on(space.base).identity: p for p in start.first}.values())
        self._running: dict[str, optuna.Trial] = {}  # by the id of ours
        self._known: set[str] = set()  # identities of policies
        self._count = 0
        for policy, told in start.known:
            asked = self._given(self._space.params(policy), 1)
            self._study.tell(asked, [told[name] for name in config.directions])
            self._known.add(policy.on(space.base).identity)

    def relive(self, ledger: Ledger) -> None:
        """Takes in what the ledger tells of probes, which the study has not seen yet."""
        for event, trial in ledger.history:
            if trial.stage != "probe":
                continue
            if event == "ended":
                self.tell(trial)
                continue
            for attempt in range(1, trial.proposals) if self._remembers else ():
                asked = self._asked(attempt)
                asked.relative_params  # noqa: B018 - asks the sampler
                self._study.tell(asked, state=TrialState.FAIL)
            self._begun(trial, self._given(trial.params, trial.proposals))

    def propose(self) -> Trial | None:
        """The next trial; None where policies that are new could not be found."""
        for attempt, asked in self._asked_often():
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
        values = [trial.figures.get(name, math.nan) for name in self._config.directions]
        if trial.status not in (FINISHED, STOPPED) or not all(map(math.isfinite, values)):
            self._study.tell(asked, state=TrialState.FAIL)
            return
        if len(values) == 1:
            for epoch, value in trial.values(self._config.objective).items():
                asked.report(value, epoch)
        if trial.status == FINISHED:
            self._study.tell(asked, values)
        else:
            self._study.tell(asked, state=TrialState.PRUNED)  # with its last value

    def _begun(self, trial: Trial, asked: optuna.Trial) -> None:
        self._running[trial.id] = asked
        self._known.add(trial.policy.identity)
        self._count += 1

    def _asked_often(self) -> Iterable[tuple[int, optuna.Trial]]:
        if self._count < len(self._first):
            yield 1, self._given(self._space.params(self._first[self._count]), 1)
            return
        wanted = self._asked(1)
        yield 1, wanted
        for attempt in range(2, NEIGHBOURS + 2):
            self._study.enqueue_trial(self._some(wanted.params, attempt))  # the rest is drawn
            yield attempt, self._asked(attempt)

    def _some(self, params: dict[str, Any], attempt: int) -> dict[str, Any]:
        """`params` without those in which a neighbour may differ."""
        draw = randomness.generator(self._config.seed, self._count, attempt, "neighbour")
        left = 1 + attempt // NEAR
        return {name: params[name] for name in draw.permutation(list(params))[left:]}

    def _asked(self, attempt: int) -> optuna.Trial:
        """A running trial whose parameters the sampler gives, the first time, or chance."""
        seed = randomness.key(self._config.seed, self._count, attempt, "proposal") % 2**32
        self._study.sampler = (
            _sampler(self._config, seed) if attempt == 1 else optuna.samplers.RandomSampler(seed)
        )
        return self._study.ask()

    def _given(self, params: Mapping[str, Any], attempt: int) -> optuna.Trial:
        """A running trial that has `params`."""
        self._study.enqueue_trial(dict(params))
        asked = self._asked(attempt)
        if self._remembers:
            asked.relative_params  # noqa: B018 - as it was asked when the parameters were not known
        self._space.suggest(asked)
        return asked

    @property
    def _remembers(self) -> bool:
        """Whether the sampler notes in the study what it was asked."""
        return self._config.searcher in ("cmaes", "nsga2", "qmc")


def _sampler(config: ExploreConfig, seed: int) -> optuna.samplers.BaseSampler:
    samplers, rest = optuna.samplers, optuna.samplers.RandomSampler(seed)
    first = config.random_trials
    with warnings.catch_warnings():
        # Grouping is marked experimental; a conditional space needs it to be sampled jointly.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match config.searcher:
            case "tpe":
                return samplers.TPESampler(
                    seed=seed,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                    n_startup_trials=first,
                )
            case "gp":
                return samplers.GPSampler(
                    seed=seed, independent_sampler=rest, n_startup_trials=first
                )
            case "cmaes":
                return samplers.CmaEsSampler(
                    seed=seed, independent_sampler=rest, n_startup_trials=first
                )
            case "qmc":  # one sequence for the whole search
                return samplers.QMCSampler(
                    seed=config.seed, scramble=True, independent_sampler=rest
                )
            case "nsga2":
                return samplers.NSGAIISampler(seed=seed, population_size=max(first, 2))
            case "random":
                return rest
