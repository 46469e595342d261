"""What a run has to show for itself: its rows, and the figures that are drawn of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from search import figures, importance
from search.correlations import FEWEST, Correlation, correlate
from search.figures import Plot
from search.ledger import Trial
from search.results import (
    FINISHED,
    Row,
    front_of,
    mean_and_std,
)
from search.standing import Standing
from spaces import scheme
from spaces.schemes import SCHEMES
from trainers.student import OBJECTIVES

MOST_PAIRS = 100  # whose bootstrap fits into some hundred MiB
PROBE_ACCURACY = "probe validation accuracy"
FINAL = {
    "validation_accuracy": "final validation accuracy",
    "test_accuracy": "final test accuracy",
}


@dataclass(frozen=True)
class Agreement:
    """How well a figure of the probes ranks policies by an accuracy; +1 is perfectly, whether the
    figure is to be low or high. `chance` is how often no relation at all gives an order as clear,
    by Kendall's test, exact for few policies. None where there are too few policies."""

    predictor: str
    outcome: str
    policies: int
    found: Correlation | None = None
    chance: float = math.nan


def promoted(now: Standing) -> list[Trial]:
    """The students of the present full length that have begun."""
    return now.ledger.students(now.config.promotion.kind)


def history(now: Standing) -> Plot | None:
    """The search, probe by probe. None before the first has ended."""
    search = now.config.search
    better = min if search.mode == "min" else max
    best, records = math.nan, list[dict[str, Any]]()
    for event, trial in now.ledger.history:
        if event == "ended" and trial.stage == "probe":
            value = trial.figures.get(search.objective, math.nan)
            if trial.status == FINISHED and math.isfinite(value):
                best = better(value, best) if math.isfinite(best) else value
            records.append(
                {
                    "probe": len(records) + 1,
                    "trial": trial.id,
                    "policy": str(trial.policy),
                    "status": trial.status,
                    "value": value,
                    "best": best,
                }
            )
    if not records:
        return None
    return figures.history(pd.DataFrame(records), search.objective, search.mode)


def agreements(now: Standing, rows: Sequence[Row]) -> tuple[list[Plot], list[Agreement]]:
    """The objective, the score and the validation loss of probes against accuracies: all of them in
    figures for the objective, the correlations of every one."""
    objective = now.config.search.objective
    plots, found = [], []
    for predictor in dict.fromkeys((objective, "score", "validation_loss")):
        for outcome in (PROBE_ACCURACY, *FINAL.values()):
            points = _points(rows, predictor, outcome)
            agreement = _agreement(predictor, outcome, points)
            found.append(agreement)
            if predictor == objective and len(points) > 1:
                mode = now.config.search.mode
                says = f"{len(points)} policies. {said(agreement)}"
                if agreement.policies < len(points):
                    says += f" It is that of {agreement.policies} of them, from first to last."
                plots.append(figures.agreement(points, predictor, outcome, mode, says))
    return plots, [agreement for agreement in found if agreement.policies > 1]


def _points(rows: Sequence[Row], predictor: str, outcome: str) -> pd.DataFrame:
    records = []
    for row in rows:
        if row.status != FINISHED or not row.has(predictor):
            continue
        if outcome == PROBE_ACCURACY:
            mean, std = row.figures.get("validation_accuracy"), None
        else:
            name = next(name for name, words in FINAL.items() if words == outcome)
            mean, std = mean_and_std([getattr(run, name) for run in row.full_length])
        if mean is not None and math.isfinite(mean):
            value = row.figures[predictor]
            records.append((str(row.policy), value, mean, math.nan if std is None else std))
    return pd.DataFrame(records, columns=["policy", "objective", "accuracy", "std"])


def _agreement(predictor: str, outcome: str, points: pd.DataFrame) -> Agreement:
    if len(points) < FEWEST:
        return Agreement(predictor, outcome, len(points))
    shown = min(len(points), MOST_PAIRS)
    some = points.iloc[np.linspace(0, len(points) - 1, shown).round().astype(int)]
    sign = -1 if OBJECTIVES[predictor] == "min" else 1
    x, y = sign * some.objective.to_numpy(), some.accuracy.to_numpy()
    chance = float(stats.kendalltau(x, y).pvalue)
    return Agreement(predictor, outcome, len(some), correlate(x, y), chance)


def said(agreement: Agreement) -> str:
    """A sentence, as sure as it may be."""
    found = agreement.found
    if found is None:
        return "Too few for a correlation."
    if not math.isfinite(found.spearman):
        return "One of the two does not vary."
    low, high = found.spearman_interval
    # A perfect order has no width in a bootstrap, however few they are.
    sure = "" if (low > 0 or high < 0) and agreement.chance < 0.05 else ", which may be chance"
    return f"Spearman {found.spearman:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}{sure}."


def matters(now: Standing) -> list[Plot]:
    """What the objective hung on, as far as there are probes enough to tell."""
    search = now.config.search
    plots = []
    if shares := importance.shares(now.config, now.ledger):
        plots.append(figures.importance(shares, search.objective))
    if effects := importance.effects(now.config, now.ledger):
        plots.append(figures.operations(effects, search.objective, search.mode))
    return plots


def too_few(now: Standing) -> str:
    """Why there is nothing on the importance of parameters, where that is so."""
    finished = sum(trial.status == FINISHED for trial in now.ledger.of("probe"))
    if finished >= importance.FEWEST:
        return ""
    return f"{finished} finished probes say nothing of parameters; it takes {importance.FEWEST}."


def fronts(now: Standing, rows: Sequence[Row]) -> list[Plot]:
    """The first objective against each further one; none where there is but one."""
    directions = now.config.search.directions
    first, *further = directions
    if not further:
        return []
    front = front_of(rows, directions)
    records: list[dict[str, Any]] = [
        {"policy": str(rows[i].policy), "front": layer == 0}
        | {name: rows[i].figures[name] for name in directions}
        for i, layer in front.items()
    ]
    if not records:
        return []
    points = pd.DataFrame(records)
    return [
        figures.front(points, first, other, (directions[first], directions[other]))
        for other in further
    ]


def curves(now: Standing) -> Plot | None:
    """Promoted students by epoch; told apart are the best so far, the best named scheme and no
    augmentation. None before the first epoch."""
    records = [
        {
            "policy": str(student.policy),
            "identity": student.policy.identity,
            "seed": student.seed,
            "epoch": epoch,
            "validation_accuracy": value,
        }
        for student in promoted(now)
        for epoch, value in student.values("validation_accuracy").items()
    ]
    if not records:
        return None
    epochs = pd.DataFrame(records)
    return figures.curves(epochs, _told_apart(now, epochs))


def _told_apart(now: Standing, epochs: pd.DataFrame) -> list[tuple[str, str]]:
    last = epochs[epochs.epoch == epochs.groupby(["identity", "seed"]).epoch.transform("max")]
    means = last.groupby("identity").validation_accuracy.mean().sort_values(ascending=False)
    names = dict(zip(epochs.identity, epochs.policy, strict=True))
    base = now.config.data.base
    none = scheme("none").on(base).identity
    schemes = {s.policy.on(base).identity for s in SCHEMES.values()} - {none}
    best_scheme = [identity for identity in means.index if identity in schemes][:1]
    chosen = dict.fromkeys([str(means.index[0]), *best_scheme, *([none] * (none in names))])
    return [(identity, names[identity]) for identity in chosen]
