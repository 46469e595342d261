"""The search space for samplers that know numbers alone: a cube, of which every point is a policy.

GP, CMA-ES and quasi-random sequences need the same parameters in every trial. Here all of them are
there at all times, as numbers between 0 and 1 in equal cells; a policy looks at those it needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spaces.policy import Policy
from spaces.space import PolicySpace, Trial

MIDDLE = 0.5  # what a policy has for the parameters that it does not look at


class FlatSpace:
    """`space` with `suggest` and its inverse `params` as numbers in [0, 1]."""

    def __init__(self, space: PolicySpace) -> None:
        self._space, self.base = space, space.base
        positions = range(1, space.spec.max_operations + 1)
        kinds = ("operation", "strength", "probability")
        self.names = ["form", "scheme", "mixing"]
        self.names += [f"{kind}_{position}" for position in positions for kind in kinds]

    def suggest(self, trial: Trial) -> Policy:
        """The policy that the numbers of `trial` stand for."""
        return self._space.suggest(
            _Unfolded({name: trial.suggest_float(name, 0.0, 1.0) for name in self.names})
        )

    def params(self, policy: Policy) -> dict[str, Any]:
        """Numbers in the middle of their cells for which `suggest` returns `policy`; raises
        UserError as `PolicySpace.params` does."""
        folded = _Folded(self._space.params(policy))
        self._space.suggest(folded)
        return dict.fromkeys(self.names, MIDDLE) | folded.numbers


@dataclass
class _Unfolded:
    """A trial that answers from numbers: which of equal cells they lie in."""

    numbers: dict[str, float]

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        return choices[min(int(self.numbers[name] * len(choices)), len(choices) - 1)]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None
    ) -> float:
        values = _grid(low, high, step)
        return values[min(int(self.numbers[name] * len(values)), len(values) - 1)]


@dataclass
class _Folded:
    """A trial whose answers are given, and which remembers them as numbers."""

    params: dict[str, Any]
    numbers: dict[str, float] = field(default_factory=dict)

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        return self._noted(name, list(choices).index(self.params[name]), len(choices))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None
    ) -> float:
        values = _grid(low, high, step)
        nearest = min(range(len(values)), key=lambda i: abs(values[i] - self.params[name]))
        return float(self._noted(name, nearest, len(values)))

    def _noted(self, name: str, index: int, count: int) -> Any:
        self.numbers[name] = (index + 0.5) / count
        return self.params[name]


def _grid(low: float, high: float, step: float | None) -> list[float]:
    assert step is not None, "every parameter of the space lies on a grid"
    count = round((high - low) / step) + 1
    return [round(low + index * step, 12) for index in range(count)]
