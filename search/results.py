"""The rows of the ranked table: one per trial, best first."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from spaces.policy import Policy

FINISHED, STOPPED, FAILED, CONTROL = "finished", "stopped", "failed", "control"


@dataclass(frozen=True)
class FullLength:
    """What one promoted student had at full length. Accuracies are fractions, losses nats."""

    seed: int
    validation_accuracy: float
    validation_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class Row:
    """One trial. `status` is finished, stopped (by the scheduler), failed, or control: promoted
    for comparison without ever having been probed."""

    trial_id: str
    status: str
    policy: Policy
    params: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)  # of the last epoch
    seconds: float = math.nan
    failure: str | None = None
    full_length: tuple[FullLength, ...] = ()
    seed: int | None = None
    batch_size: int | None = None
    node: str | None = None
    device: str | None = None
    code_version: str | None = None  # of the code that began it last
    attempts: int = 0  # how often it was begun

    def has(self, figure: str) -> bool:
        """Whether the trial reported a number for `figure`."""
        return math.isfinite(self.figures.get(figure, math.nan))


def ranked(rows: Iterable[Row], directions: Mapping[str, str]) -> list[Row]:
    """Finished trials by objective, then stopped ones, then those without a value.

    `directions` are the objectives and whether each is to be "min" or "max". Where there are
    several, finished trials come front by front: first those that no other one beats in all of
    them, then those that only these beat, and so on; inside a front the first objective counts.
    """
    rows = list(rows)
    order = {FINISHED: 0, STOPPED: 1, FAILED: 2, CONTROL: 3}
    costs, front = _costs(rows, directions), front_of(rows, directions)

    def key(index: int) -> tuple[bool, int, int, float, str]:
        row, known = rows[index], _known(costs[index])
        first = costs[index][0] if known else 0.0
        return not known, order[row.status], front.get(index, 0), first, row.trial_id

    return [rows[index] for index in sorted(range(len(rows)), key=key)]


def _costs(rows: Sequence[Row], directions: Mapping[str, str]) -> list[list[float]]:
    signs = {name: 1 if mode == "min" else -1 for name, mode in directions.items()}
    return [[sign * row.figures.get(n, math.nan) for n, sign in signs.items()] for row in rows]


def front_of(rows: Sequence[Row], directions: Mapping[str, str]) -> dict[int, int]:
    """The front of each finished row that has a number for every objective, by its index; 0 are
    those that no other one beats in all of them."""
    costs = _costs(rows, directions)
    finished = [i for i, row in enumerate(rows) if row.status == FINISHED and _known(costs[i])]
    return dict(zip(finished, fronts([costs[i] for i in finished]), strict=True))


def fronts(costs: Sequence[Sequence[float]]) -> list[int]:
    """The front that each of several vectors of costs is in, 0 for those that no other one
    dominates: none better in one of them and no worse in any."""
    if not costs:
        return []
    if len(costs[0]) == 1:  # an order, in which every value is a front
        order = sorted({cost for (cost,) in costs})
        return [bisect_left(order, cost) for (cost,) in costs]
    values = np.asarray(costs)
    found, left, layer = np.zeros(len(values), int), np.arange(len(values)), 0
    while len(left):
        of_left = values[left]
        no_worse = (of_left[:, None] <= of_left[None]).all(axis=2)
        better = (of_left[:, None] < of_left[None]).any(axis=2)
        beaten = (no_worse & better).any(axis=0)
        found[left[~beaten]] = layer
        left, layer = left[beaten], layer + 1
    return [int(layer) for layer in found]


def foremost(rows: Sequence[Row], directions: Mapping[str, str], count: int) -> list[Row]:
    """At most `count` of the `ranked` rows that ran to their end with the first objective: whole
    fronts while there is room, and of the next one a `spread`. With one objective, the best."""
    finished = [row for row in rows if row.status == FINISHED and row.has(next(iter(directions)))]
    costs, front = _costs(finished, directions), front_of(finished, directions)
    found: list[int] = []
    # Whoever lacks one of several objectives is in no front, and behind all.
    for layer, members in groupby(range(len(finished)), key=front.get):
        indices, room = list(members), count - len(found)
        if layer is not None and len(indices) > room:
            indices = [indices[i] for i in spread([costs[i] for i in indices], room)]
        found += indices[:room]
    return [finished[index] for index in found]


def spread(costs: Sequence[Sequence[float]], count: int) -> list[int]:
    """The indices of `count` vectors of costs that cover all of them: the first, and each time the
    one that is farthest from those, where every cost counts from its least to its greatest.

    Gonzalez (Theoretical Computer Science 38, 1985): no vector is more than twice as far from the
    nearest one as the best choice would have it. Crowding distances (Deb et al., IEEE TEC 6, 2002),
    by which NSGA-II thins out a front, cannot choose a few: all ends of a front are infinitely far
    from others, and where there are many objectives they alone are more than are wanted.
    """
    values = np.asarray(costs, float)
    extent = np.ptp(values, axis=0)
    values = values / np.where(extent > 0, extent, 1)
    chosen: list[int] = []
    distance = np.full(len(values), np.inf)
    while len(chosen) < min(count, len(values)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(values - values[chosen[-1]], axis=1))
        distance[chosen] = -1  # of equal ones each is taken once
    return sorted(chosen)


def _known(costs: Sequence[float]) -> bool:
    return all(map(math.isfinite, costs))


def mean_and_std(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and unbiased standard deviation; None where there are too few values."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def with_full_length(
    rows: Iterable[Row], promoted: Mapping[str, tuple[FullLength, ...]]
) -> list[Row]:
    """`rows` with the full-length figures of their policies, by identity."""
    return [replace(row, full_length=promoted.get(row.policy.identity, ())) for row in rows]
