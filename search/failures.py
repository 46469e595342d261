"""When too much fails, what the failures have in common, and of what kind one is."""

import re
from collections import Counter
from collections.abc import Sequence

from search.ledger import LOST, Trial
from search.results import FAILED

FEW = 5  # failures that a search always bears


def too_many(trials: Sequence[Trial], share: float) -> bool:
    """Whether of the `trials` that ended more than `share` failed, and more than a few."""
    failed = sum(trial.status == FAILED for trial in trials)
    return failed > FEW and failed > share * sum(trial.status is not None for trial in trials)


def in_common(trials: Sequence[Trial]) -> str:
    """A sentence on the failures among `trials`: their reasons, and what all of them have and none
    of the others. Needs a failure."""
    failed = [trial for trial in trials if trial.status == FAILED]
    others = [trial for trial in trials if trial.status not in (FAILED, None)]
    reasons = Counter(re.sub(r"\d+", "N", trial.failure or "") for trial in failed)
    reason, times = reasons.most_common(1)[0]
    example = next(t.failure for t in failed if re.sub(r"\d+", "N", t.failure or "") == reason)
    said = [f"{times} of {len(failed)} with {example!r}"]
    shared = set.intersection(*map(_traits, failed)).difference(*map(_traits, others))
    if shared and others:
        said.append(f"all failed ones, and no other, had {' and '.join(sorted(shared))}")
    return f"{len(failed)} of {len(failed) + len(others)} failed: {'; '.join(said)}"


def _traits(trial: Trial) -> set[str]:
    policy = trial.policy
    found = {f"the operation {o.name}" for chain in policy.chains for o in chain.operations}
    if policy.mixing is not None:
        found.add(f"the mixing {policy.mixing.name}")
    return found | {f"the {name} {value}" for name, value in trial.places.items()}


def kind(failure: str) -> str:
    """Which of a few kinds a failure is of: lost, diverged, memory, user or other."""
    if failure.startswith(LOST):
        return "lost"
    if failure.startswith("DivergedError:") or failure.endswith("was not a finite number"):
        return "diverged"
    if re.search(r"OutOfMemoryError|MemoryError|out of memory", failure, re.IGNORECASE):
        return "memory"
    return "user" if failure.startswith("UserError:") else "other"
