"""What promotion found, said honestly: who won by validation, by how much, and whether that is
more than the spread over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
from scipy import stats

from search.results import FullLength, mean_and_std
from spaces.policy import Policy

Role = Literal["candidate", "scheme", "none"]
CONFIDENCE = 0.95
NO_SPREAD = 1e-9  # far less than one image of any data set


@dataclass(frozen=True)
class Candidate:
    """A promoted policy, why it was promoted, and its students, by seed."""

    policy: Policy
    role: Role
    runs: tuple[FullLength, ...]

    @property
    def validation_accuracy(self) -> float:
        return fmean(run.validation_accuracy for run in self.runs)

    @property
    def validation_loss(self) -> float:
        return fmean(run.validation_loss for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Mean, standard deviation and standard error over seeds; None where they are too few."""
        found: dict[str, Any] = {
            "policy": str(self.policy),
            "policy_identity": self.policy.identity,
            "role": self.role,
            "seeds": [run.seed for run in self.runs],
        }
        for name in ("validation_accuracy", "validation_loss", "test_accuracy"):
            values = [getattr(run, name) for run in self.runs]
            mean, std = mean_and_std(values)
            error = _standard_error(values)
            found[name] = {"mean": mean, "std": std, "standard_error": error, "values": values}
        return found


@dataclass(frozen=True)
class Lead:
    """Winner minus control in one accuracy, a fraction, as the mean over the seeds of both.

    `standard_error` is that of the paired differences. Over few seeds these agree by chance at
    times, so `noise` is the larger of it and of the error that the spread of all candidates would
    give; `interval` holds the difference with `CONFIDENCE`, by Student's t and the degrees of
    freedom of `noise`, for all rivals at once. None where no spread was seen: with one seed, or
    where every seed agrees.
    """

    mean: float
    standard_error: float | None
    noise: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """Winner minus control over the seeds that both have."""

    control: str
    role: Role
    seeds: int
    rivals: int  # whom the winner was the best of
    validation: Lead
    test: Lead

    @property
    def beyond_noise(self) -> bool:
        """Whether all of the interval of the validation difference is above zero. The best of many
        has had luck, so its level is divided by the number of rivals (Bonferroni)."""
        return self.validation.interval is not None and self.validation.interval[0] > 0

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            n: getattr(self, n) for n in ("control", "role", "seeds", "rivals")
        }
        for name, lead in (("validation", self.validation), ("test", self.test)):
            found[name] = lead.mean
            found[f"{name}_standard_error"] = lead.standard_error
            found[f"{name}_noise"] = lead.noise
            found[f"{name}_interval"] = lead.interval and list(lead.interval)
        return found | {"confidence": CONFIDENCE, "beyond_noise": self.beyond_noise}


@dataclass(frozen=True)
class Verdict:
    """The winner by validation, its lead over each control, and both in a sentence. `lost` says
    which students did not reach their end, and why."""

    winner: Candidate
    differences: tuple[Difference, ...]
    sentence: str
    candidates: tuple[Candidate, ...]
    lost: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "sentence": self.sentence,
            "winner": str(self.winner.policy),
            "winner_identity": self.winner.policy.identity,
            "winner_role": self.winner.role,
            "lost_students": list(self.lost),
            "candidates": [candidate.as_dict() for candidate in self.candidates],
            "differences": [difference.as_dict() for difference in self.differences],
        }


def decide(candidates: Sequence[Candidate], lost: Sequence[str] = ()) -> Verdict:
    """The candidate of the best mean validation accuracy; equal ones by validation loss.

    Only those with the most seeds can win: one that lost its students on hard seeds would. Test
    figures are reported and decide nothing. Needs at least one candidate; `lost` are failures of
    students to report.
    """
    most = max(len(c.runs) for c in candidates)
    whole = [c for c in candidates if len(c.runs) == most]
    winner = min(whole, key=lambda c: (-c.validation_accuracy, c.validation_loss))
    controls = [c for c in candidates if c.role != "candidate" and c is not winner]
    seeds = {run.seed for run in winner.runs}
    differences = tuple(
        _difference(winner, control, candidates)
        for control in controls
        if seeds & {run.seed for run in control.runs}
    )
    sentence = _sentence(winner, differences)
    if lost:
        sentence += f" {len(lost)} student{'s' * (len(lost) > 1)} did not reach the end."
    return Verdict(winner, differences, sentence, tuple(candidates), tuple(lost))


def _difference(
    winner: Candidate, control: Candidate, candidates: Sequence[Candidate]
) -> Difference:
    common = {run.seed for run in winner.runs} & {run.seed for run in control.runs}
    rivals = len(candidates) - 1

    def lead(figure: Literal["validation_accuracy", "test_accuracy"]) -> Lead:
        by_seed = [{run.seed: getattr(run, figure) for run in c.runs} for c in (winner, control)]
        paired = [by_seed[0][seed] - by_seed[1][seed] for seed in sorted(common)]
        return _lead_of(paired, _residual(candidates, winner, figure), rivals)

    return Difference(
        control=str(control.policy),
        role=control.role,
        seeds=len(common),
        rivals=rivals,
        validation=lead("validation_accuracy"),
        test=lead("test_accuracy"),
    )


def _lead_of(paired: list[float], residual: tuple[float, int], rivals: int) -> Lead:
    """The lead from differences by seed and the residual variance of all candidates with its
    degrees of freedom."""
    mean, error = fmean(paired), _standard_error(paired)
    if error is None:
        return Lead(mean, None, None, None)
    variance, freedom = residual
    pooled = float((2 * variance / len(paired)) ** 0.5)
    noise, freedom = (pooled, freedom) if pooled > error else (error, len(paired) - 1)
    if noise < NO_SPREAD:
        return Lead(mean, error, None, None)
    reach = float(stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / rivals, freedom) * noise)
    return Lead(mean, error, noise, (mean - reach, mean + reach))


def _residual(candidates: Sequence[Candidate], winner: Candidate, figure: str) -> tuple[float, int]:
    """The variance that is left when every candidate and every seed have a mean of their own, over
    the candidates with the winner's seeds, and its degrees of freedom: the error of a two-way
    analysis of variance without replication (Fisher, 1925)."""
    seeds = {run.seed for run in winner.runs}
    values = np.array(
        [
            [getattr(run, figure) for run in sorted(c.runs, key=lambda run: run.seed)]
            for c in candidates
            if {run.seed for run in c.runs} == seeds
        ]
    )
    freedom = (values.shape[0] - 1) * (values.shape[1] - 1)
    if freedom == 0:
        return 0.0, 0
    left = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    return float((left**2).sum() / freedom), freedom


def _standard_error(values: list[float]) -> float | None:
    _, std = mean_and_std(values)
    return None if std is None else float(std / len(values) ** 0.5)


def _sentence(winner: Candidate, differences: Sequence[Difference]) -> str:
    runs = winner.runs
    test = percent(*mean_and_std([run.test_accuracy for run in runs]))
    validation = percent(*mean_and_std([run.validation_accuracy for run in runs]))
    figures = f"validation {validation}, test {test}, {len(runs)} seed{'s' * (len(runs) > 1)}"
    if winner.role == "none":
        return f"No policy beat the control: no augmentation is best ({figures})."
    if winner.role == "scheme":
        opening = f"No composed policy beat the controls: the scheme {winner.policy} is best"
    else:
        opening = f"{winner.policy} is best"
    leads = "; ".join(map(_lead, _worth_saying(differences)))
    return f"{opening} ({figures}): {leads or 'there was no control to compare it with'}."


def _worth_saying(differences: Sequence[Difference]) -> list[Difference]:
    """The lead over the strongest scheme and over no augmentation."""
    schemes = [d for d in differences if d.role == "scheme"]
    nearest = sorted(schemes, key=lambda d: d.validation.mean)[:1]
    return nearest + [d for d in differences if d.role == "none"]


def _lead(difference: Difference) -> str:
    validation, test = difference.validation, difference.test
    if difference.seeds == 1:
        noise = ", with one seed, which may be noise"
    elif validation.noise is None:
        noise = f", equal for all {difference.seeds} seeds, whose noise is not known by that"
    elif not difference.beyond_noise:
        noise = ", within the noise of the seeds"
    else:
        # The validation images chose the winner; the test images never saw the choice.
        noise = "" if test.mean > 0 else ", not confirmed by the test images"
    points = signed_points(validation.mean, validation.noise)
    found = signed_points(test.mean, test.noise)
    return f"{points} points over {difference.control}{noise} (test {found})"


def percent(mean: float | None, std: float | None) -> str:
    """`96.2 ± 0.4 %`; the spread is the standard deviation over seeds."""
    if mean is None:
        return ""
    return f"{100 * mean:.1f} %" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f} %"


def signed_points(value: float, error: float | None) -> str:
    """`+1.2 ± 0.3`, percentage points; the uncertainty is the `noise` of a Lead."""
    return f"{100 * value:+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
