"""The ranked table taken elsewhere: in another format, to this disk or to an address."""

import io
import json
import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

from spaces.atomic_write import atomic_write
from spaces.errors import UserError

ENDINGS = (".parquet", ".csv", ".json")
SECONDS_TO_ANSWER = 5


def export(table: pa.Table, to: str) -> None:
    """Writes the table as the ending of `to` says: .parquet, .csv or .json (a list of records).

    `to` is a path, or an address such as s3://BUCKET/KEY of pyarrow or fsspec, whose credentials
    come from the environment. On this disk and on S3, a reader sees the old content or the new one.
    Raises UserError where nothing can be written there.
    """
    parts = urlsplit(to) if "://" in to else None
    ending = Path(parts.path if parts else to).suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{to}: export writes .parquet, .csv or .json, got {ending or 'none'!r}")
    content = _content(table, ending)
    try:
        if parts is None:
            _write(content, Path(to))
        elif parts.scheme == "file":
            _write(content, Path(unquote(parts.path)))
        else:
            _send(content, to)
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror or error}") from None


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


def _send(content: bytes, address: str) -> None:
    try:
        if urlsplit(address).scheme == "s3":
            _send_to_s3(content, address)
        else:
            filesystem, path = url_to_fs(address)
            filesystem.pipe_file(path, content)
    except Exception as error:  # every store has errors of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{address}: cannot be written: {reason}") from None


def _send_to_s3(content: bytes, address: str) -> None:
    """By pyarrow: it needs no other package, and can be kept from trying for minutes."""
    parts = urlsplit(address)
    options = dict(parse_qsl(parts.query))  # region, scheme, endpoint_override
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if named:
        endpoint = urlsplit(named)
        options = {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc} | options
    store = S3FileSystem(
        connect_timeout=SECONDS_TO_ANSWER,
        request_timeout=SECONDS_TO_ANSWER,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=2),
        **options,
    )
    # Closing makes an object of what was written: nothing is opened before all of it is there.
    with store.open_output_stream(parts.netloc + unquote(parts.path)) as stream:
        stream.write(content)
