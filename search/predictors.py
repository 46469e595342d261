"""Which figure of a probe foretells what a policy gives at full length, and how short a probe may
be: rank correlations, and a recommendation that takes their uncertainty into account."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.correlations import CONFIDENCE, FEWEST, Correlation, Floats, correlate, lead
from spaces.errors import UserError
from trainers.student import OBJECTIVES

# What students of full length have in the end, and which way is better.
OUTCOMES = {"validation_loss": "min", "validation_accuracy": "max", "test_accuracy": "max"}
# The test images decide nothing, and losses tell more policies apart than accuracies do.
DECIDES = "validation_loss"
DEFAULT = "score"

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Prediction:
    """How a figure at the end of probes of `epochs` epochs orders policies by each outcome of
    `OUTCOMES`; +1 is the order from best to worst, whichever way the figures run."""

    figure: str
    epochs: int
    values: tuple[float, ...]  # by policy, the higher the better
    outcomes: Mapping[str, Correlation]

    @property
    def spearman(self) -> float:
        """With the outcome that decides."""
        return self.outcomes[DECIDES].spearman

    @property
    def tells(self) -> bool:
        """Whether the interval lies above 0."""
        return self.outcomes[DECIDES].spearman_interval[0] > 0

    def as_dict(self) -> dict[str, Any]:
        found = {name: correlation.as_dict() for name, correlation in self.outcomes.items()}
        return {"figure": self.figure, "probe_epochs": self.epochs, **found}


@dataclass(frozen=True)
class Recommendation:
    """The objective and the length of probes for data, teacher and student like these; `trusted`
    is False where no figure was seen to foretell anything."""

    objective: str
    probe_epochs: int
    trusted: bool
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def predictions(
    probed: Mapping[int, Sequence[Figures]], outcomes: Sequence[Figures], *, seed: int = 0
) -> list[Prediction]:
    """Every figure that can steer a search, for every length of probes, best first.

    `probed` has the last figures of probes by their epochs, `outcomes` the means over seeds of
    students of full length; all in the same order of policies. Raises UserError for fewer than
    four policies, about which nothing can be said.
    """
    require_enough(len(outcomes))
    results = {
        name: _higher_is_better([o[name] for o in outcomes], way) for name, way in OUTCOMES.items()
    }
    found = []
    for epochs, figures in probed.items():
        for name, way in OBJECTIVES.items():
            values = _higher_is_better([told.get(name, np.nan) for told in figures], way)
            if np.isfinite(values).all():
                pairs = {o: correlate(values, result, seed=seed) for o, result in results.items()}
                found.append(Prediction(name, epochs, tuple(values), pairs))
    return sorted(found, key=lambda p: (-np.nan_to_num(p.spearman, nan=-2), p.epochs, p.figure))


def require_enough(policies: int) -> None:
    """Raises UserError for fewer policies than tell anything."""
    if policies < FEWEST:
        raise UserError(
            f"{policies} policies have both probes and students: rank correlations need "
            f"{FEWEST} or more, name more --schemes or --random"
        )


def recommend(
    found: Sequence[Prediction], outcomes: Sequence[Figures], *, seed: int = 0
) -> Recommendation:
    """The shortest probes, and of these the default objective or else the best figure, among all
    whose interval lies above 0 and that are within one standard error of the best: the simplest
    choice that is about as good (Breiman et al. 1984, section 3.4.3). So a figure that only
    happened to come first displaces neither a shorter probe nor the default.

    `found` is what `predictions` gave.
    """
    telling = [p for p in found if p.tells]
    if not telling:
        longest = max(p.epochs for p in found)
        return Recommendation(
            DEFAULT,
            longest,
            trusted=False,
            sentence=(
                f"No figure is seen to foretell the full length here ({len(outcomes)} policies, "
                f"every {100 * CONFIDENCE:.0f} % interval reaches 0): let promotion take more "
                "policies rather than trust a ranking."
            ),
        )
    result = _higher_is_better([o[DECIDES] for o in outcomes], OUTCOMES[DECIDES])
    best = telling[0]
    equals = [p for p in telling if p is best or _about_as_good(p, best, result, seed)]
    shortest = min(p.epochs for p in equals)
    equals = [p for p in equals if p.epochs == shortest]
    chosen = next((p for p in equals if p.figure == DEFAULT), equals[0])
    return Recommendation(chosen.figure, chosen.epochs, trusted=True, sentence=_said(chosen, best))


def _about_as_good(prediction: Prediction, best: Prediction, result: Floats, seed: int) -> bool:
    values, others = np.array(prediction.values), np.array(best.values)
    difference, error = lead(values, others, result, seed=seed)
    return difference >= -error


def _said(chosen: Prediction, best: Prediction) -> str:
    low, high = chosen.outcomes[DECIDES].spearman_interval
    told = (
        f"{chosen.figure} after {_epochs(chosen.epochs)} orders policies as the final validation "
        f"loss does with a Spearman coefficient of {chosen.spearman:+.2f} ({low:+.2f} to "
        f"{high:+.2f})"
    )
    if chosen is best:
        return f"{told}; no other figure does better."
    return (
        f"{told}; {best.figure} after {_epochs(best.epochs)} had {best.spearman:+.2f}, which is "
        "within one standard error."
    )


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count > 1)}"


def _higher_is_better(values: Sequence[float], way: str) -> Floats:
    return np.array(values, dtype=np.float64) * (1 if way == "max" else -1)
