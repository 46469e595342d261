"""What the sources of encoded images have in common."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable


@runtime_checkable
class Encoded(Protocol):
    """The encoded images of one part of a data set, in an order that stays."""

    @property
    def names(self) -> Sequence[str]:
        """What each is called in messages."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of each."""

    @property
    def stamp(self) -> str:
        """Hexadecimal; another one whenever a file or a label is another."""

    def read(self, start: int, stop: int) -> list[bytes]:
        """The images `start` to `stop`; one that cannot be read is empty."""


class Source(NamedTuple):
    """A data set of encoded images: the names of its classes and the parts that it has."""

    classes: list[str]
    parts: dict[str, Encoded]


def stamp(files: Iterable[tuple[str, Path]], *others: object) -> str:
    """A digest of the names, sizes and times of `files` and of whatever else decides."""
    digest = hashlib.blake2b(digest_size=16)
    for name, path in files:
        status = path.stat()
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    digest.update(repr(others).encode())
    return digest.hexdigest()
