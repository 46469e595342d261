"""Runs side by side: what each found, and policies that several trained to full length."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from scipy import stats

from search.config import flat
from search.results import FINISHED, FullLength, mean_and_std
from search.run_folder import RunFolder
from search.standing import Standing, standing
from search.verdict import CONFIDENCE
from spaces.errors import UserError
from spaces.policy import Policy


@dataclass(frozen=True)
class Paired:
    """A policy's students in two runs, in accuracy on the test images, over the seeds that both
    have: the second run's minus the first's, and the interval that holds the difference with
    `CONFIDENCE`, by Student's t over the pairs. None with one seed, or where all agree."""

    policy: str
    seeds: tuple[int, ...]
    difference: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """What differs between runs, the policies that several trained, and pairs by seed."""

    runs: tuple[Standing, ...]
    verdicts: tuple[dict[str, Any] | None, ...]  # of each run
    settings: dict[str, list[Any]]  # by key, hashes and versions too, where they differ
    students: dict[str, list[list[FullLength]]]  # by policy, of each run
    pairs: dict[tuple[int, int], list[Paired]]  # by the positions of two runs

    def as_dict(self) -> dict[str, Any]:
        return {
            "runs": [
                run.as_dict() | {"verdict": verdict}
                for run, verdict in zip(self.runs, self.verdicts, strict=True)
            ],
            "settings": self.settings,
            "policies": [
                {"policy": policy, "test_accuracy": [_summary(s) for s in students]}
                for policy, students in self.students.items()
            ],
            "pairs": [
                {"first": a, "second": b, **vars(pair)}
                for (a, b), pairs in self.pairs.items()
                for pair in pairs
            ],
        }


def compare(folders: Sequence[RunFolder]) -> Comparison:
    """Raises UserError for fewer than two runs, and for those that cannot be read."""
    if len(folders) < 2:
        raise UserError("augury compare takes two runs or more")
    runs = tuple(standing(folder) for folder in folders)
    by_run = [_students(run) for run in runs]
    names: dict[str, Policy] = {}
    for students in by_run:
        names |= {identity: policy for identity, (policy, _) in students.items()}
    shared = [i for i in names if sum(i in students for students in by_run) > 1]
    known = Counter(str(names[i]) for i in shared)
    said = {i: f"{names[i]} ({i})" if known[str(names[i])] > 1 else str(names[i]) for i in shared}
    return Comparison(
        runs,
        tuple(folder.read_verdict() for folder in folders),
        _different(runs),
        {said[i]: [students.get(i, (None, []))[1] for students in by_run] for i in shared},
        {
            (a, b): [
                paired
                for i in shared
                if i in by_run[a] and i in by_run[b]
                if (paired := pair(said[i], by_run[a][i][1], by_run[b][i][1])) is not None
            ]
            for a, b in combinations(range(len(runs)), 2)
        },
    )


def pair(policy: str, first: Sequence[FullLength], second: Sequence[FullLength]) -> Paired | None:
    """None where no seed is in both."""
    one, other = ({s.seed: s.test_accuracy for s in students} for students in (first, second))
    seeds = tuple(sorted(one.keys() & other.keys()))
    if not seeds:
        return None
    differences = [other[seed] - one[seed] for seed in seeds]
    mean, std = mean_and_std(differences)
    assert mean is not None
    if not std:
        return Paired(policy, seeds, mean, None)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1) * std / len(seeds) ** 0.5)
    return Paired(policy, seeds, mean, (mean - reach, mean + reach))


def _students(run: Standing) -> dict[str, tuple[Policy, list[FullLength]]]:
    """Of the length that the run's config has now, by the identity of their policy."""
    found: dict[str, tuple[Policy, list[FullLength]]] = {}
    for trial in run.ledger.students(run.config.promotion.kind):
        if trial.status == FINISHED:
            _, students = found.setdefault(trial.policy.identity, (trial.policy, []))
            students.append(trial.full_length())
    return found


def _different(runs: Sequence[Standing]) -> dict[str, list[Any]]:
    """By the key in their configs, and of what made them: equal configs may mean other images."""
    values = [flat(run.config) | _made_by(run.folder.read_marker()) for run in runs]
    keys = dict.fromkeys(key for of_run in values for key in of_run)
    found = {key: [of_run.get(key) for of_run in values] for key in keys}
    return {key: of_runs for key, of_runs in found.items() if any(v != of_runs[0] for v in of_runs)}


def _made_by(marker: Mapping[str, Any]) -> dict[str, Any]:
    hashes = {name: marker.get(name) for name in ("data_hash", "teacher_hash")}
    versions = marker.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    return hashes | {f"versions.{name}": version for name, version in versions.items()}


def _summary(students: Sequence[FullLength]) -> dict[str, Any] | None:
    if not students:
        return None
    mean, std = mean_and_std([s.test_accuracy for s in students])
    return {"mean": mean, "std": std, "seeds": [s.seed for s in students]}
