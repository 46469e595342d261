"""Promotion: the best policies and the controls, trained to full length over several seeds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from search.config import SearchConfig
from search.explore import TrialEnded, row_of_result, tuner
from search.results import FAILED, FINISHED, FullLength, Row
from search.run_folder import RunFolder
from search.trainable import ProbeTrial, Shared
from search.verdict import Candidate, Role
from spaces import Policy, scheme
from spaces.schemes import SCHEMES


@dataclass(frozen=True)
class Promoted:
    """What promotion trained, and what went wrong with students that it lost."""

    candidates: tuple[Candidate, ...]
    failures: tuple[str, ...]


def select(rows: Sequence[Row], config: SearchConfig) -> list[tuple[Policy, Role]]:
    """The best of the ranked `rows` that ran to their end with an objective, then the controls that
    are not among them: nothing but the data's own base, and the best named scheme."""
    objective, base = config.search.objective, config.data.base
    finished = [row.policy for row in rows if row.status == FINISHED and row.has(objective)]
    none = scheme("none").on(base)
    schemes = {s.policy.on(base).identity for s in SCHEMES.values()} - {none.identity}
    best_scheme = [policy for policy in finished if policy.identity in schemes][:1]
    chosen = {p.identity: p for p in (*finished[: config.promotion.top], *best_scheme, none)}

    def role(identity: str) -> Role:
        if identity == none.identity:
            return "none"
        return "scheme" if identity in schemes else "candidate"

    return [(policy, role(identity)) for identity, policy in chosen.items()]


def promote(
    config: SearchConfig,
    shared: Shared,
    chosen: Sequence[tuple[Policy, Role]],
    folder: RunFolder,
    trial_ended: TrialEnded,
) -> Promoted:
    """Trains every chosen policy with the same seeds to full length, and keeps the students.

    Test accuracy is read once per student, after its last epoch; no choice hangs on it.
    """
    promotion = config.promotion
    folder.students.mkdir(exist_ok=True)
    # Not the probes' seeds: a policy must not profit from the luck that promoted it.
    first = config.search.seed + 1
    grid: Any = tuner(
        config,
        tune.with_parameters(
            ProbeTrial, shared=shared, epochs=promotion.epochs, students=folder.students
        ),
        folder=folder.tune / "promote",
        trial_ended=trial_ended,
        epochs=promotion.epochs,
        param_space={
            "seed": tune.grid_search(list(range(first, first + promotion.seeds))),
            "policy": tune.grid_search([policy.model_dump_json() for policy, _ in chosen]),
        },
        tune_config={"scheduler": FIFOScheduler()},
    ).fit()
    runs: dict[str, list[FullLength]] = defaultdict(list)
    failures = []
    for result in grid:
        row = row_of_result(result, promotion.epochs)
        if row.status == FAILED:
            failures.append(f"{row.policy}: {row.failure}")
            continue
        assert result.config is not None and result.metrics is not None
        runs[row.policy.identity].append(
            FullLength(
                seed=result.config["seed"],
                validation_accuracy=row.figures["validation_accuracy"],
                validation_loss=row.figures["validation_loss"],
                test_accuracy=result.metrics["test_accuracy"],
            )
        )
    candidates = tuple(
        Candidate(policy, role, tuple(sorted(runs[policy.identity], key=lambda run: run.seed)))
        for policy, role in chosen
        if runs[policy.identity]
    )
    return Promoted(candidates, tuple(failures))
