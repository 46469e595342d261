"""The ranked table taken elsewhere: in another format, to this disk or to an address."""

import io
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from search.storage import StorageError, Store
from spaces.atomic_write import atomic_write
from spaces.errors import UserError

ENDINGS = (".parquet", ".csv", ".json")


def export(table: pa.Table, to: str) -> None:
    """Writes the table as the ending of `to` says: .parquet, .csv or .json (a list of records).

    `to` is a path, or an address such as s3://BUCKET/KEY of pyarrow or fsspec, whose credentials
    come from the environment. On this disk and on S3, a reader sees the old content or the new one.
    Raises UserError where nothing can be written there.
    """
    parts = urlsplit(to) if "://" in to else None
    if parts is not None and parts.scheme == "file":
        to, parts = unquote(parts.path), None
    destination = Path(to) if parts is None else Store(to)
    ending = Path(parts.path if parts else to).suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{to}: export writes .parquet, .csv or .json, got {ending or 'none'!r}")
    content = _content(table, ending)
    try:
        if isinstance(destination, Path):
            _write(content, destination)
        else:
            destination.put("", content)
    except OSError as error:
        reason = error.reason if isinstance(error, StorageError) else error.strerror or error
        raise UserError(f"{to}: cannot be written: {reason}") from None


def _content(table: pa.Table, ending: str) -> bytes:
    if ending == ".json":
        return (json.dumps(table.to_pylist(), indent=2, ensure_ascii=False) + "\n").encode()
    buffer = io.BytesIO()
    if ending == ".parquet":
        pq.write_table(table, buffer)
    else:
        seeds = [" ".join(map(str, row)) for row in table.column("full_seeds").to_pylist()]
        at = table.schema.get_field_index("full_seeds")
        pyarrow.csv.write_csv(table.set_column(at, "full_seeds", pa.array(seeds)), buffer)
    return buffer.getvalue()


def _write(content: bytes, path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.absolute().parent} to write to")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
