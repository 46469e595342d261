"""Files that every node reaches: in a folder that all share, or at an address.

An address is s3://BUCKET/KEY or gs://BUCKET/KEY, by pyarrow, or what fsspec knows. A file there is
written whole or not at all. Credentials come from the environment of the process that reads or
writes, never from the address.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from fsspec.core import url_to_fs
from pyarrow.fs import (
    AwsStandardS3RetryStrategy,
    FileInfo,
    FileSelector,
    FileSystem,
    FileType,
    FSSpecHandler,
    LocalFileSystem,
    PyFileSystem,
    S3FileSystem,
    copy_files,
)

from spaces.atomic_write import atomic_write
from spaces.errors import UserError

SECONDS_TO_ANSWER = 5
PATIENCE = 20.0  # seconds in which an address that has answered before may answer again
T = TypeVar("T")


class StorageError(OSError):
    """The address `where` cannot be read or written, for a `reason`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, str]]:
        return StorageError, (self.where, self.reason)


class Store:
    """The files below an address, by names such as `students/a.pt`.

    Pickled, it is an address and nothing else: every process connects by itself. What was reached
    before is tried again for `PATIENCE` seconds, then there is a StorageError; what was not is
    given up at once. Raises UserError for an address with credentials in it.
    """

    def __init__(self, address: str, below: str = "") -> None:
        _require_no_credentials(address)
        self.address, self.below = address, below
        self._answered: set[str] = set()  # reading, writing, since it was last given up

    def __reduce__(self) -> tuple[type["Store"], tuple[str, str]]:
        return Store, (self.address, self.below)

    def __str__(self) -> str:
        start = self.address.split("?")[0].rstrip("/")
        return f"{start}/{self.below}" if self.below else start

    def at(self, name: str) -> "Store":
        """The files below `name`."""
        return Store(self.address, f"{self.below}/{name}" if self.below else name)

    @cached_property
    def _reached(self) -> tuple[FileSystem, str]:
        filesystem, path = connect(self.address)
        return filesystem, f"{path.rstrip('/')}/{self.below}".rstrip("/")

    def listing(self, below: str = "", *, deep: bool = True) -> dict[str, FileInfo]:
        """What pyarrow tells of every file below, or right below, by name; empty where there is
        none."""

        def listed(filesystem: FileSystem, path: str) -> dict[str, FileInfo]:
            under = _joined(path, below)
            found = filesystem.get_file_info(
                FileSelector(under, recursive=deep, allow_not_found=True)
            )
            return {i.path[len(path) + 1 :]: i for i in found if i.type == FileType.File}

        return self._try("reading", listed)

    def get(self, name: str) -> bytes | None:
        """None where there is no such file."""

        def read(filesystem: FileSystem, path: str) -> bytes | None:
            try:
                with filesystem.open_input_stream(_joined(path, name)) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

        return self._try("reading", read)

    def put(self, name: str, content: bytes) -> None:
        def write(filesystem: FileSystem, path: str) -> None:
            # Closing makes an object of what was written, and all of it is at hand.
            with filesystem.open_output_stream(_joined(path, name)) as stream:
                stream.write(content)

        self._try("writing", write)

    def send(self, file: Path, name: str) -> None:
        """A copy of `file`, which need not fit into memory."""
        here = LocalFileSystem()
        self._try(
            "writing", lambda there, path: copy_files(str(file), _joined(path, name), here, there)
        )

    def bring(self, name: str, file: Path) -> None:
        """A copy of what is there to `file`."""
        here = LocalFileSystem()
        with atomic_write(file) as copy:
            self._try(
                "reading",
                lambda there, path: copy_files(_joined(path, name), str(copy), there, here),
            )

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """As of `Folder`."""
        with tempfile.TemporaryDirectory(prefix="augury-") as folder:
            file = Path(folder) / "file"
            with _told_as_of(folder):
                yield file
            self.send(file, name)

    def reading(self, name: str) -> IO[bytes] | None:
        """As of `Folder`."""
        content = self.get(name)
        return None if content is None else io.BytesIO(content)

    def remove(self, name: str) -> None:
        """As of `Folder`."""

        def delete(filesystem: FileSystem, path: str) -> None:
            with suppress(FileNotFoundError):
                filesystem.delete_file(_joined(path, name))

        self._try("writing", delete)

    def remove_all(self, below: str) -> None:
        """Every file below, where there is any."""

        def delete(filesystem: FileSystem, path: str) -> None:
            with suppress(FileNotFoundError):
                filesystem.delete_dir(_joined(path, below))

        self._try("writing", delete)

    def _try(self, doing: str, action: Callable[[FileSystem, str], T]) -> T:
        until = time.monotonic() + (PATIENCE if doing in self._answered else 0)
        pause = 1.0
        while True:
            try:
                done = action(*self._reached)
            except Exception as error:  # every store has errors of its own
                if time.monotonic() + pause > until:
                    self._answered.clear()
                    raise StorageError(str(self), _first_line(error)) from None
                time.sleep(pause)
                pause *= 2
            else:
                self._answered.add(doing)
                return done


class Folder:
    """The files in a folder that every node has at the same path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yields a path on this machine; what is written there becomes the file `name`, whole.
        Raises StorageError, also on a machine without the run, such as a node that came later.
        """
        if not self.path.parent.is_dir():
            raise StorageError(str(self.path), f"{self.path.parent} is not on this node")
        with _told_as_of(self.path), atomic_write(self.path / name) as temporary:
            yield temporary

    def reading(self, name: str) -> IO[bytes] | None:
        """None where there is no such file. Raises StorageError."""
        with _told_as_of(self.path):
            try:
                return (self.path / name).open("rb")
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """The file `name`, where it is there."""
        (self.path / name).unlink(missing_ok=True)


@contextmanager
def _told_as_of(where: Path | str) -> Iterator[None]:
    """What goes wrong with files there is the storage's fault and not that of who uses them."""
    try:
        yield
    except OSError as error:
        raise StorageError(str(where), error.strerror or str(error)) from None
    except RuntimeError as error:  # torch's own, which tells of positions in the file
        said = f"it cannot be written, the disk may be full ({_first_line(error)})"
        raise StorageError(str(where), said) from None


def _joined(path: str, name: str) -> str:
    return f"{path}/{name}" if name else path


def reached(place: Path | Store) -> Folder | Store:
    return place if isinstance(place, Store) else Folder(place)


def connect(address: str) -> tuple[FileSystem, str]:
    """The file system that an address belongs to, and the path there; raises what that raises."""
    parts = urlsplit(address)
    if parts.scheme in ("s3", "gs", "gcs") and not parts.netloc:
        raise ValueError("it names no bucket")
    if parts.scheme == "s3":
        return _s3(dict(parse_qsl(parts.query))), parts.netloc + unquote(parts.path)
    if parts.scheme in ("gs", "gcs"):
        if "retry_limit_seconds" not in parts.query:
            address += f"{'&' if parts.query else '?'}retry_limit_seconds={SECONDS_TO_ANSWER}"
        return FileSystem.from_uri(address)
    filesystem, path = url_to_fs(address)
    return PyFileSystem(FSSpecHandler(filesystem)), path


def _s3(options: dict[str, Any]) -> FileSystem:
    """`options` are pyarrow's: region, scheme, endpoint_override, tls_ca_file_path."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if named:
        endpoint = urlsplit(named)
        options = {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc} | options
    return S3FileSystem(
        connect_timeout=SECONDS_TO_ANSWER,
        request_timeout=SECONDS_TO_ANSWER,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=2),  # its own would take minutes
        allow_delayed_open=True,  # one request for what is small
        **options,
    )


def _require_no_credentials(address: str) -> None:
    parts = urlsplit(address)
    in_query = any(
        word in name.lower()
        for name, _ in parse_qsl(parts.query, keep_blank_values=True)
        for word in ("key", "secret", "token", "password", "credential")
    )
    in_bucket = parts.scheme == "s3" and not {"@", ":"}.isdisjoint(parts.netloc)
    if in_query or in_bucket or parts.password is not None:
        raise UserError(
            f"{parts.scheme}://...: keep credentials out of the address, which is shown and kept: "
            "they belong in the environment"
        )


def _first_line(error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    return said.splitlines()[0][:400]
