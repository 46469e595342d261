"""What the objective of a search hung on: parameters and operations of the policies that it probed.

Parameters by functional ANOVA, the share of the variance that a random forest lays on each (Hutter,
Hoos and Leyton-Brown, ICML 2014), as Optuna has it. Operations by the difference between policies
with and without them, whose interval is Welch's (Biometrika, 1947).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from scipy import stats

from search.config import SearchConfig
from search.ledger import Ledger
from search.proposals import FLAT
from search.results import FINISHED
from spaces import Policy, PolicySpace
from spaces.space import STEP

FEWEST, MOST = 10, 300  # policies from which a forest is grown
TREES, DEPTH = 16, 5  # of a forest; deep trees take minutes for some hundred policies
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """Of the variance of the objective among the `policies` that have the parameter, in [0, 1]."""

    parameter: str
    share: float
    policies: int


@dataclass(frozen=True)
class Effect:
    """The mean objective of policies with an operation or a mixing minus that of those without;
    `interval` holds it with `CONFIDENCE`."""

    operation: str
    difference: float
    interval: tuple[float, float]
    policies: int  # with it
    others: int


def shares(config: SearchConfig, ledger: Ledger) -> list[Share]:
    """The share of every parameter that enough finished probes had, largest first.

    A parameter that only some policies have, such as `strength_2`, is judged among those. Of many
    probes as many as `MOST`, from first to last, are judged by.
    """
    told = _told(config, ledger)
    study = _study(told)
    names = sorted({name for params, _ in told for name in params})
    found: dict[tuple[str, ...], dict[str, float]] = {}
    result = []
    for name in names:
        having = [params for params, _ in told if name in params]
        if len(having) < FEWEST:
            continue
        together = tuple(sorted(set.intersection(*map(set, having))))
        if together not in found:
            found[together] = _fanova(study, together)
        if name in found[together]:
            result.append(Share(name, found[together][name], len(having)))
    return sorted(result, key=lambda share: -share.share)


def effects(config: SearchConfig, ledger: Ledger) -> list[Effect]:
    """Of every operation and mixing that at least two policies of one chain had and two had not,
    the most helpful first."""
    name, mode = config.search.objective, config.search.mode
    values = [
        (_parts(trial.policy), trial.figures[name])
        for trial in ledger.of("probe")
        if trial.status == FINISHED and name in trial.figures and len(trial.policy.chains) == 1
    ]
    found = []
    for part in sorted({part for parts, _ in values for part in parts}):
        having = [value for parts, value in values if part in parts]
        others = [value for parts, value in values if part not in parts]
        if min(len(having), len(others)) >= 2 and np.ptp(having) + np.ptp(others) > 0:
            test = stats.ttest_ind(having, others, equal_var=False)
            low, high = map(float, test.confidence_interval(CONFIDENCE))
            difference = float(np.mean(having) - np.mean(others))
            found.append(Effect(part, difference, (low, high), len(having), len(others)))
    return sorted(found, key=lambda e: e.difference if mode == "min" else -e.difference)


def _parts(policy: Policy) -> set[str]:
    mixing = {policy.mixing.name} if policy.mixing is not None else set()
    return {operation.name for operation in policy.chains[0].operations} | mixing


def _told(config: SearchConfig, ledger: Ledger) -> list[tuple[Mapping[str, Any], float]]:
    """Parameters and objective of finished probes; of samplers that know numbers alone, what the
    numbers stood for."""
    name = config.search.objective
    trials = [t for t in ledger.of("probe") if t.status == FINISHED and name in t.figures]
    trials = trials[:: -(-len(trials) // MOST) or 1]
    if config.search.searcher not in FLAT:
        return [(trial.params, trial.figures[name]) for trial in trials]
    space = PolicySpace(config.search.space, base=config.data.base)
    space = space.including(trial.policy for trial in trials)
    return [(space.params(trial.policy), trial.figures[name]) for trial in trials]


def _study(told: Sequence[tuple[Mapping[str, Any], float]]) -> optuna.Study:
    choices: dict[str, set[Any]] = {}
    for params, _ in told:
        for name, value in params.items():
            choices.setdefault(name, set()).add(value)
    known = {name: _distribution(values) for name, values in choices.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()  # whether it minimises does not count here
    for params, value in told:
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(params),
                distributions={name: known[name] for name in params},
                value=value,
            )
        )
    return study


def _distribution(values: set[Any]) -> BaseDistribution:
    if all(isinstance(value, str) for value in values):
        return CategoricalDistribution(sorted(values))
    return FloatDistribution(STEP, 1.0, step=STEP)


def _fanova(study: optuna.Study, params: Sequence[str]) -> dict[str, float]:
    """Empty where the objective does not vary."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.importance.get_param_importances(
                study, evaluator=evaluator, params=list(params), normalize=False
            )
    except RuntimeError:  # of a forest without variance
        return {}
