"""What promotion found, said honestly: who won by validation, by how much, and whether that is
more than the spread over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from scipy import stats

from search.results import FullLength, mean_and_std
from spaces.policy import Policy

Role = Literal["candidate", "scheme", "none"]
CONFIDENCE = 0.95


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


@dataclass(frozen=True)
class Difference:
    """Winner minus control over the seeds that both have, as fractions of accuracy."""

    control: str
    seeds: int
    validation: float
    validation_standard_error: float | None  # None with fewer than two seeds
    test: float
    test_standard_error: float | None
    rivals: int  # whom the winner was the best of

    @property
    def beyond_noise(self) -> bool:
        """Whether the validation difference is above zero in a one-sided paired t-test, at a level
        divided by the number of rivals (Bonferroni): the best of many has had luck."""
        if self.validation_standard_error is None:
            return False
        level = 1 - (1 - CONFIDENCE) / self.rivals
        threshold = stats.t.ppf(level, self.seeds - 1) * self.validation_standard_error
        return bool(self.validation > threshold)


@dataclass(frozen=True)
class Verdict:
    """The winner by validation, its lead over each control, and both in a sentence. `lost` says
    which students did not reach their end, and why."""

    winner: Candidate
    differences: tuple[Difference, ...]
    sentence: str
    lost: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "sentence": self.sentence,
            "winner": str(self.winner.policy),
            "winner_identity": self.winner.policy.identity,
            "winner_role": self.winner.role,
            "lost_students": list(self.lost),
            "differences": [
                vars(difference) | {"beyond_noise": difference.beyond_noise}
                for difference in self.differences
            ],
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
        _difference(winner, control, rivals=len(candidates) - 1)
        for control in controls
        if seeds & {run.seed for run in control.runs}
    )
    sentence = _sentence(winner, differences)
    if lost:
        sentence += f" {len(lost)} student{'s' * (len(lost) > 1)} did not reach the end."
    return Verdict(winner, differences, sentence, tuple(lost))


def _difference(winner: Candidate, control: Candidate, rivals: int) -> Difference:
    of_control = {run.seed: run for run in control.runs}
    pairs = [(run, of_control[run.seed]) for run in winner.runs if run.seed in of_control]
    validation = [a.validation_accuracy - b.validation_accuracy for a, b in pairs]
    test = [a.test_accuracy - b.test_accuracy for a, b in pairs]
    return Difference(
        control=str(control.policy),
        seeds=len(pairs),
        validation=fmean(validation),
        validation_standard_error=_standard_error(validation),
        test=fmean(test),
        test_standard_error=_standard_error(test),
        rivals=rivals,
    )


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
    schemes = [d for d in differences if d.control != "none"]
    nearest = sorted(schemes, key=lambda d: d.validation)[:1]
    return nearest + [d for d in differences if d.control == "none"]


def _lead(difference: Difference) -> str:
    if not difference.beyond_noise:
        noise = ", within the noise of the seeds"
    else:
        # The validation images chose the winner; the test images never saw the choice.
        noise = "" if difference.test > 0 else ", not confirmed by the test images"
    points = signed_points(difference.validation, difference.validation_standard_error)
    test = signed_points(difference.test, difference.test_standard_error)
    return f"{points} points over {difference.control}{noise} (test {test})"


def percent(mean: float | None, std: float | None) -> str:
    """`96.2 ± 0.4 %`; the spread is the standard deviation over seeds."""
    if mean is None:
        return ""
    return f"{100 * mean:.1f} %" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f} %"


def signed_points(value: float, error: float | None) -> str:
    """`+1.2 ± 0.3`, percentage points; the uncertainty is the standard error."""
    return f"{100 * value:+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
