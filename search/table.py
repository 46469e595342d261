"""The ranked table as a file: an Arrow schema that others may rely on, docs/policies-parquet.md.

`python -m search.table` renews the list of columns in that page.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from search.results import CONTROL, STOPPED, Row, front_of, mean_and_std
from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from trainers.student import FIGURES

SCHEMA_VERSION = 2
METADATA_PREFIX = "augury."


def _column(
    name: str, kind: pa.DataType, unit: str, meaning: str, *, always: bool = False
) -> pa.Field:
    """`unit` is empty for what has none; `always` is there in every row."""
    about = {"unit": unit, "meaning": meaning}
    return pa.field(name, kind, nullable=not always, metadata=about)


_UNITS = {  # the other figures are in nats
    "epoch": "",
    "teacher_stddev": "",
    "validation_accuracy": "fraction",
    "images_per_second": "1/s",
}
_FULL = {"validation_accuracy": "fraction", "validation_loss": "nats", "test_accuracy": "fraction"}
_STATISTICS = {"mean": "mean", "std": "unbiased standard deviation"}
HASHES = {
    "config_hash": "of everything in the config that a run keeps to its end",
    "data_hash": "of the images, labels and their division into parts",
    "teacher_hash": "of everything that makes the teacher",
}
_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int32()
SCHEMA = pa.schema(
    [
        _column(
            "rank",
            _COUNT,
            "",
            "place in the ranking, from 1: finished trials by objective (with several objectives "
            "front by front), then stopped ones, then those without a value, then controls",
            always=True,
        ),
        _column(
            "trial_id",
            _TEXT,
            "",
            "number of the probe, in the order in which they began; `control_...` for a row that "
            "was never probed",
            always=True,
        ),
        _column("status", _TEXT, "", "`finished`, `stopped`, `failed` or `control`", always=True),
        _column("reason", _TEXT, "", "why it is not finished"),
        _column("policy", _TEXT, "", "the policy in words", always=True),
        _column("policy_json", _TEXT, "", "the policy as a policy file has it", always=True),
        _column(
            "policy_identity",
            _TEXT,
            "",
            "hash of what the policy does; equal for policies that differ in name alone",
            always=True,
        ),
        _column("params_json", _TEXT, "", "the sampler's parameters, JSON", always=True),
        _column("objective", _NUMBER, "", "value of the first objective, a column of its own too"),
        _column(
            "front",
            pa.bool_(),
            "",
            "whether no other finished probe beats it in all objectives",
            always=True,
        ),
        *(
            _column(name, _COUNT if name == "epoch" else _NUMBER, _UNITS.get(name, "nats"), meaning)
            for name, meaning in FIGURES.items()
        ),
        _column(
            "seed",
            pa.int64(),
            "",
            "of the probe; all of a search have the same; of a control, its first student's",
        ),
        _column(
            "seconds",
            _NUMBER,
            "s",
            "of training and validation, all epochs and attempts; of a control, all of its "
            "students",
        ),
        _column(
            "attempts",
            _COUNT,
            "",
            "how often the probe, or all students of a control, were begun",
            always=True,
        ),
        _column(
            "batch_size",
            _COUNT,
            "images",
            "trained with; half of the config's where the device had no memory for more",
        ),
        _column("node", _TEXT, "", "host on which the last epoch ran"),
        _column("device", _TEXT, "", "`cpu`, or the name of the GPU"),
        _column("code_version", _TEXT, "", "Augury's version, and a hash of its source"),
        *(_column(name, _TEXT, "", meaning) for name, meaning in HASHES.items()),
        _column(
            "full_seeds",
            pa.list_(pa.int64()),
            "",
            "of the students of full length; empty where the policy was not promoted",
            always=True,
        ),
        *(
            _column(
                f"full_{figure}_{statistic}",
                _NUMBER,
                unit,
                f"{how} of the {figure.replace('_', ' ')} over the students of full length",
            )
            for figure, unit in _FULL.items()
            for statistic, how in _STATISTICS.items()
        ),
    ]
)


def to_table(
    rows: Iterable[Row], directions: Mapping[str, str], metadata: Mapping[str, str]
) -> pa.Table:
    """The table of `rows` in their order; `metadata` goes into the file's schema, and the hashes
    among it into every row. `directions` are as of `ranked`."""
    rows = list(rows)
    front, objective = front_of(rows, directions), next(iter(directions))
    alike = {name: metadata.get(name) for name in HASHES}
    records = [
        {"rank": index + 1, "front": front.get(index) == 0, **_record(row, objective), **alike}
        for index, row in enumerate(rows)
    ]
    full = {"schema_version": str(SCHEMA_VERSION), **metadata}
    schema = SCHEMA.with_metadata({METADATA_PREFIX + k: v for k, v in full.items()})
    return pa.Table.from_pylist(records, schema=schema)


def _record(row: Row, objective: str) -> dict[str, Any]:
    figures = {n: v if math.isfinite(v) else None for n, v in row.figures.items() if n in FIGURES}
    record = {
        "trial_id": row.trial_id,
        "status": row.status,
        "reason": _reason(row),
        "policy": str(row.policy),
        "policy_json": row.policy.model_dump_json(),
        "policy_identity": row.policy.identity,
        "params_json": json.dumps(dict(row.params), sort_keys=True),
        "objective": figures.get(objective),
        **figures,
        "seed": row.seed,
        "seconds": row.seconds if math.isfinite(row.seconds) else None,
        "attempts": row.attempts,
        "batch_size": row.batch_size,
        "device": row.device,
        "node": row.node,
        "code_version": row.code_version,
        "full_seeds": [run.seed for run in row.full_length],
    }
    for name in _FULL:
        values = [getattr(run, name) for run in row.full_length]
        record[f"full_{name}_mean"], record[f"full_{name}_std"] = mean_and_std(values)
    return record


def _reason(row: Row) -> str | None:
    if row.status == STOPPED:
        return f"stopped by the scheduler after epoch {row.figures['epoch']:g}"
    return "promoted to compare with, never probed" if row.status == CONTROL else row.failure


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes the table so that a reader sees the old file or the new one, never a part."""
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)


def read_parquet(path: Path) -> pa.Table:
    """The table at `path`; raises UserError where there is none of ours or of another version."""
    try:
        with path.open("rb") as file:  # by its path it would be opened twice, and may be two files
            table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: no readable table of policies: {error}") from None
    found = (table.schema.metadata or {}).get(f"{METADATA_PREFIX}schema_version".encode(), b"")
    if found != str(SCHEMA_VERSION).encode():
        raise UserError(
            f"{path}: schema version {found.decode() or 'none'} is not known, "
            f"this Augury reads {SCHEMA_VERSION}"
        )
    return table


def described() -> str:
    """The columns as a table in Markdown, one a line."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for column in SCHEMA:
        about = {key.decode(): value.decode() for key, value in column.metadata.items()}
        kind = str(column.type)
        if pa.types.is_list(column.type):
            kind = f"list of {column.type.value_type}"
        kind += ", or null" if column.nullable else ""
        lines.append(f"| `{column.name}` | {kind} | {about['unit']} | {about['meaning']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    page = Path(__file__).parent.parent / "docs" / "policies-parquet.md"
    before, _, rest = page.read_text(encoding="utf-8").partition("| column |")
    after = rest[rest.index("\n\n") :]
    page.write_text(before + described() + after, encoding="utf-8")
