"""Promotion: the best policies and the controls, trained to full length over several seeds."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search.config import SearchConfig
from search.ledger import Ledger, Trial
from search.loggers import Callback
from search.results import FAILED, FINISHED, STOPPED, FullLength, Row, foremost
from search.run_folder import RunFolder
from search.trainable import Shared
from search.trials import Sitting, run_trials
from search.verdict import Candidate, Role
from spaces import Policy, scheme
from spaces.schemes import SCHEMES


@dataclass(frozen=True)
class Promoted:
    """What promotion trained, and what went wrong with students that it lost."""

    candidates: tuple[Candidate, ...]
    failures: tuple[str, ...]


def select(rows: Sequence[Row], config: SearchConfig) -> list[tuple[Policy, Role]]:
    """The `foremost` of the ranked `rows`, then the controls that are not among them: nothing but
    the data's own base, and the best named scheme, which a scheduler may have stopped."""
    objective, base = config.search.objective, config.data.base
    known = [r.policy for r in rows if r.status in (FINISHED, STOPPED) and r.has(objective)]
    none = scheme("none").on(base)
    schemes = {s.policy.on(base).identity for s in SCHEMES.values()} - {none.identity}
    best_scheme = [policy for policy in known if policy.identity in schemes][:1]
    best = [row.policy for row in foremost(rows, config.search.directions, config.promotion.top)]
    chosen = {p.identity: p for p in (*best, *best_scheme, none)}

    def role(identity: str) -> Role:
        if identity == none.identity:
            return "none"
        return "scheme" if identity in schemes else "candidate"

    return [(policy, role(identity)) for identity, policy in chosen.items()]


def promote(
    config: SearchConfig,
    shared: Shared,
    chosen: Sequence[tuple[Policy, Role]],
    *,
    ledger: Ledger,
    folder: RunFolder,
    ended: Callable[[Trial], None],
    loggers: Sequence[Callback] = (),
) -> Promoted:
    """Trains every chosen policy with the same seeds to full length, and keeps the students.

    Students that the ledger has are not trained again. Test accuracy is read once per student,
    after its last epoch; no choice hangs on it.
    """
    known, students = ledger.trials, students_of(chosen, config)
    left = [known.get(s.id, s) for s in students if s.id not in known or not known[s.id].status]
    folder.students.mkdir(exist_ok=True)
    epochs = config.promotion.epochs
    if left:
        run_trials(
            shared.learning_from(config.promotion.images, config.promotion.workers),
            cluster=config.cluster.of_workers(config.promotion.workers),
            sitting=Sitting(ledger, epochs, "validation_accuracy", ended),
            unfinished=left,
            propose=lambda: None,
            folder=folder.tune / "promote",
            students=folder.for_workers(folder.students),
            loggers=loggers,
        )
    trained = [known[s.id] for s in students]
    runs: dict[str, list[FullLength]] = defaultdict(list)
    for trial in trained:
        if trial.status == FINISHED:
            runs[trial.policy.identity].append(trial.full_length())
    candidates = tuple(
        Candidate(policy, role, tuple(runs[policy.identity]))
        for policy, role in chosen
        if runs[policy.identity]
    )
    failures = [f"{trial.policy}: {trial.failure}" for trial in trained if trial.status == FAILED]
    return Promoted(candidates, tuple(failures))


def students_of(chosen: Sequence[tuple[Policy, Role]], config: SearchConfig) -> list[Trial]:
    """What promotion trains, by policy and seed."""
    # Not the probes' seeds: a policy must not profit from the luck that promoted it.
    first, promotion = config.search.seed + 1, config.promotion
    return [
        Trial(f"{policy.identity}-{seed}-{promotion.kind}", "promotion", policy, seed)
        for policy, _ in chosen
        for seed in range(first, first + promotion.seeds)
    ]
