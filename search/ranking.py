"""The ranked table, of what a ledger has: probes by objective, each with its students of full
length, and the controls that were never probed at its end."""

from collections import defaultdict
from collections.abc import Sequence

from search.config import SearchConfig
from search.ledger import Ledger, Trial
from search.results import CONTROL, FINISHED, Row, ranked, with_full_length


def rows_of(ledger: Ledger, config: SearchConfig) -> list[Row]:
    """The table as it is at this moment; it has all students of the present full length that
    finished, also of policies that have since fallen behind."""
    students: dict[str, list[Trial]] = defaultdict(list)
    for student in ledger.students(config.promotion.kind):
        if student.status == FINISHED:
            students[student.policy.identity].append(student)
    runs = {
        identity: tuple(student.full_length() for student in sorted(of, key=lambda s: s.seed))
        for identity, of in students.items()
    }
    rows = with_full_length(probed(ledger, config), runs)
    known = {row.policy.identity for row in rows}
    return rows + [_control(of) for identity, of in students.items() if identity not in known]


def probed(ledger: Ledger, config: SearchConfig) -> list[Row]:
    """The probes that ended, ranked."""
    ended = (trial.row() for trial in ledger.of("probe") if trial.status)
    return ranked(ended, config.search.directions)


def _control(students: Sequence[Trial]) -> Row:
    """Of a policy that has students of full length alone."""
    by_seed, last = sorted(students, key=lambda student: student.seed), students[-1]
    return Row(
        f"control_{last.policy.identity}",
        CONTROL,
        last.policy,
        seconds=sum(student.seconds for student in students),
        full_length=tuple(student.full_length() for student in by_seed),
        seed=by_seed[0].seed,
        code_version=last.code_version,
        attempts=sum(student.attempts for student in students),
        **last.places,
    )
