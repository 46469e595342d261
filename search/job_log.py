"""A job's log, read on the laptop: lines for people, lines for machines, and a run's files."""

import base64
import binascii
import io
import json
import re
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from search.job_driver import PACKED, TOLD
from spaces.atomic_write import atomic_write
from spaces.errors import UserError

# What `fetch` may bring, by its path in the run.
FILES = re.compile(
    r"run\.json|config\.yaml|policies\.parquet|best_policy\.json|verdict\.json|trials\.jsonl"
    r"|report\.html|validation\.(json|csv)|teacher\.pt|students/[A-Za-z0-9][A-Za-z0-9._-]*\.pt"
)
MARKER, LEDGER = "run.json", "trials.jsonl"


def machine_lines(log: str) -> dict[str, Any]:
    """What the job told, the latest of each kind; lines that are torn are passed over."""
    told: dict[str, Any] = {}
    for line in log.splitlines():
        if line.startswith(TOLD):
            try:
                said = json.loads(line.removeprefix(TOLD))
            except ValueError:
                continue
            if isinstance(said, dict):
                told |= said
    return told


class Reader:
    """Hands the lines for people on, each once, also when the log comes from its start again."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._line = ""
        self._skip = 0
        self.seen = 0  # characters

    def from_the_start(self) -> None:
        """What comes next is the log's beginning."""
        self._skip = self.seen

    def take(self, text: str) -> None:
        fresh = text[self._skip :]
        self._skip = max(self._skip - len(text), 0)
        self.seen += len(fresh)
        *lines, self._line = (self._line + fresh).split("\n")
        for line in lines:
            if not line.startswith((TOLD, PACKED)):
                self._write(line)

    def take_again(self, log: str) -> None:
        """The whole log as it is by now."""
        self.from_the_start()
        self.take(log)

    def take_all(self, log: str) -> None:
        """The whole log, after which nothing comes."""
        self.take_again(log if log.endswith("\n") or not log else log + "\n")


def packed(log: str, to: Path) -> list[Path]:
    """Writes the files that a job packed into its `log` to the folder `to`; returns their paths.

    Raises UserError where `to` holds something that is not the same run, or more of it, or cannot
    be written, and where the log is not what was packed.
    """
    files = _unpacked(log)
    marker = to / MARKER
    try:
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            same = marker.is_file() and marker.read_bytes() == files.get(MARKER)
            if not same:
                raise UserError(f"{to} holds something else: name a new folder with --to")
            _require_not_ahead(to / LEDGER, files.get(LEDGER, b""))
        for name, content in files.items():
            path = to / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror}") from None
    return [to / name for name in files]


def _require_not_ahead(ledger: Path, fetched: bytes) -> None:
    """A run that went on here, or is searched in this very folder, would lose what it has since."""
    from search.ledger import require_free  # torch, which other commands do without

    require_free(ledger)
    here = ledger.read_bytes() if ledger.exists() else b""
    if not fetched.startswith(here[: here.rfind(b"\n") + 1]):  # without a torn line at its end
        raise UserError(
            f"{ledger.parent}: the run went on here, beyond what comes: name a new folder with --to"
        )


def _unpacked(log: str) -> dict[str, bytes]:
    """The content of each file, by a name that is known; nothing else of an archive is taken."""
    lines = [line.removeprefix(PACKED) for line in log.splitlines() if line.startswith(PACKED)]
    try:
        content = b"".join(base64.b64decode(line, validate=True) for line in lines)
        if sha256(content).hexdigest() != machine_lines(log).get("digest"):
            raise UserError("the run came incomplete: fetch it again")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            files = {}
            for entry in archive:
                reader = archive.extractfile(entry) if entry.isfile() else None
                if reader is None or not FILES.fullmatch(entry.name):
                    raise UserError(f"the run came with a file that no run has: {entry.name!r}")
                files[entry.name] = reader.read()
            return files
    except (binascii.Error, tarfile.TarError, EOFError, OSError):
        raise UserError("the run came incomplete: fetch it again") from None
