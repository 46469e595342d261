"""The ranked table: one row per trial, best first, in parquet and out of it."""

import io
import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq

from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from spaces.policy import Policy
from trainers.student import FIGURES

SCHEMA_VERSION = 2
METADATA_PREFIX = "augury."
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
    augury: str | None = None  # the version that trained it

    def has(self, figure: str) -> bool:
        """Whether the trial reported a number for `figure`."""
        return math.isfinite(self.figures.get(figure, math.nan))


HASHES = ("config_hash", "data_hash", "teacher_hash")
_FULL_COLUMNS = [
    f"full_{figure}_{statistic}"
    for figure in ("validation_accuracy", "validation_loss", "test_accuracy")
    for statistic in ("mean", "std")
]
SCHEMA = pa.schema(
    [
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("policy_json", pa.string(), nullable=False),
        pa.field("policy_identity", pa.string(), nullable=False),
        pa.field("params_json", pa.string(), nullable=False),
        pa.field("objective", pa.float64()),
        pa.field("front", pa.bool_(), nullable=False),
        *(pa.field(name, pa.int32() if name == "epoch" else pa.float64()) for name in FIGURES),
        pa.field("seconds", pa.float64()),
        pa.field("failure", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("batch_size", pa.int32()),
        *(pa.field(name, pa.string()) for name in ("node", "device", "augury")),
        *(pa.field(name, pa.string()) for name in HASHES),
        pa.field("full_seeds", pa.list_(pa.int64()), nullable=False),
        *(pa.field(name, pa.float64()) for name in _FULL_COLUMNS),
    ]
)


def ranked(rows: Iterable[Row], directions: Mapping[str, str]) -> list[Row]:
    """Finished trials by objective, then stopped ones, then those without a value.

    `directions` are the objectives and whether each is to be "min" or "max". Where there are
    several, finished trials come front by front: first those that no other one beats in all of
    them, then those that only these beat, and so on; inside a front the first objective counts.
    """
    rows = list(rows)
    order = {FINISHED: 0, STOPPED: 1, FAILED: 2, CONTROL: 3}
    costs, layers = _costs(rows, directions), _layers(rows, directions)

    def key(index: int) -> tuple[bool, int, int, float, str]:
        row, known = rows[index], _known(costs[index])
        first = costs[index][0] if known else 0.0
        return not known, order[row.status], layers.get(index, 0), first, row.trial_id

    return [rows[index] for index in sorted(range(len(rows)), key=key)]


def _costs(rows: Sequence[Row], directions: Mapping[str, str]) -> list[list[float]]:
    signs = {name: 1 if mode == "min" else -1 for name, mode in directions.items()}
    return [[sign * row.figures.get(n, math.nan) for n, sign in signs.items()] for row in rows]


def _layers(rows: Sequence[Row], directions: Mapping[str, str]) -> dict[int, int]:
    """The front of each finished row, by index."""
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


def _known(costs: Sequence[float]) -> bool:
    return all(map(math.isfinite, costs))


def to_table(
    rows: Iterable[Row], directions: Mapping[str, str], metadata: Mapping[str, str]
) -> pa.Table:
    """The table of `rows` in their order; `metadata` goes into the file's schema, and the hashes
    among it into every row. `directions` are as of `ranked`."""
    rows = list(rows)
    layers, objective = _layers(rows, directions), next(iter(directions))
    alike = {name: metadata.get(name) for name in HASHES}
    records = [
        {"rank": index + 1, "front": layers.get(index) == 0, **_record(row, objective), **alike}
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
        "policy": str(row.policy),
        "policy_json": row.policy.model_dump_json(),
        "policy_identity": row.policy.identity,
        "params_json": json.dumps(dict(row.params), sort_keys=True),
        "objective": figures.get(objective),
        **figures,
        "seconds": row.seconds if math.isfinite(row.seconds) else None,
        "failure": row.failure,
        "seed": row.seed,
        "batch_size": row.batch_size,
        "node": row.node,
        "device": row.device,
        "augury": row.augury,
        "full_seeds": [run.seed for run in row.full_length],
    }
    for name in ("validation_accuracy", "validation_loss", "test_accuracy"):
        values = [getattr(run, name) for run in row.full_length]
        record[f"full_{name}_mean"], record[f"full_{name}_std"] = mean_and_std(values)
    return record


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


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes the table so that a reader sees the old file or the new one, never a part."""
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)


def read_parquet(path: Path) -> pa.Table:
    """The table at `path`; raises UserError where there is none of ours or of another version."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: no readable table of policies: {error}") from None
    found = (table.schema.metadata or {}).get(f"{METADATA_PREFIX}schema_version".encode(), b"")
    if found != str(SCHEMA_VERSION).encode():
        raise UserError(
            f"{path}: schema version {found.decode() or 'none'} is not known, "
            f"this Augury reads {SCHEMA_VERSION}"
        )
    return table


def export(table: pa.Table, to: str) -> None:
    """Writes the table as its ending says: .parquet, .csv or .json (a list of records).

    `to` is a path, or an address such as s3://bucket/table.parquet that pyarrow or fsspec knows.
    Raises UserError where it cannot be written; whole or not at all.
    """
    ending = PurePosixPath(to).suffix.lower()
    if ending not in (".parquet", ".csv", ".json"):
        raise UserError(f"{to}: export writes .parquet, .csv or .json, got {ending or 'none'!r}")
    try:
        if "://" in to:
            content = io.BytesIO()
            _write(table, content, ending)
            _put(content.getvalue(), to)
            return
        if not Path(to).absolute().parent.is_dir():
            raise UserError(f"{to}: there is no folder {Path(to).absolute().parent} to write to")
        with atomic_write(to) as temporary, temporary.open("wb") as file:
            _write(table, file, ending)
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror or error}") from None


def _put(content: bytes, address: str) -> None:
    """One object at `address`, which appears when it is complete."""
    try:
        files, path = pa.fs.FileSystem.from_uri(address)
    except pa.ArrowInvalid:  # no scheme of pyarrow's own
        files, path = _by_fsspec(address)
    with files.open_output_stream(path) as stream:
        stream.write(content)


def _by_fsspec(address: str) -> tuple[pa.fs.FileSystem, str]:
    try:
        files, path = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise UserError(f"{address}: {error}") from None
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(files)), path


def _write(table: pa.Table, file: BinaryIO, ending: str) -> None:
    if ending == ".parquet":
        pq.write_table(table, file)
    elif ending == ".csv":
        seeds = [" ".join(map(str, row)) for row in table.column("full_seeds").to_pylist()]
        at = table.schema.get_field_index("full_seeds")
        pyarrow.csv.write_csv(table.set_column(at, "full_seeds", pa.array(seeds)), file)
    else:
        text = json.dumps(table.to_pylist(), indent=2, ensure_ascii=False)
        file.write(f"{text}\n".encode())
