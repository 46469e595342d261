"""Every path of a run, so that writer, export and documentation cannot disagree."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from spaces.atomic_write import atomic_write
from spaces.errors import UserError

if TYPE_CHECKING:
    from search.storage import Store

FORMAT = "augury-run"
VERSION = 1


class RunFolder:
    """A folder with everything that one search produced; `run.json` marks it as ours.

    That of a run at an address is the working copy of one process (search/remote_run.py), which
    sends what it is told to: a folder has nothing to do then.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()  # Ray's workers change directory

    @classmethod
    def at(cls, where: Path | str) -> "RunFolder":
        """The run at a path, or at an address such as s3://bucket/runs/w4, there or not; raises
        UserError for an address that cannot be one of a run."""
        parts = urlsplit(str(where))
        if "://" not in str(where):
            return cls(where)
        if parts.scheme == "file":
            return cls(unquote(parts.path))
        from search.remote_run import RemoteRun

        return RemoteRun(str(where))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """What others call the run by: dashboards, trackers, studies."""
        return self.path.name

    @property
    def marker(self) -> Path:
        """Format, versions, seed, the hashes of data and teacher, and the config at the start."""
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        """The whole config, defaults too."""
        return self.path / "config.yaml"

    @property
    def policies(self) -> Path:
        """The ranked table."""
        return self.path / "policies.parquet"

    @property
    def best_policy(self) -> Path:
        """The policy that validation chose."""
        return self.path / "best_policy.json"

    @property
    def students(self) -> Path:
        """The students of full length: IDENTITY-SEED-EPOCHS-IMAGES.pt, of several workers
        IDENTITY-SEED-EPOCHS-IMAGES-Nworkers.pt."""
        return self.path / "students"

    @property
    def verdict(self) -> Path:
        """What promotion found, in words and figures."""
        return self.path / "verdict.json"

    @property
    def report(self) -> Path:
        """The page that shows it all."""
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        """The figures of that page: NAME.svg, NAME.png and NAME.csv."""
        return self.path / "report"

    @property
    def validation(self) -> Path:
        """How well each figure of the probes foretells the full length; the same as .csv."""
        return self.path / "validation.json"

    @property
    def ledger(self) -> Path:
        """What happened, line by line: what a search is resumed from."""
        return self.path / "trials.jsonl"

    @property
    def teacher(self) -> Path:
        """The weights of the teacher."""
        return self.path / "teacher.pt"

    @property
    def checkpoints(self) -> Path:
        """The students that are being trained: IDENTITY-SEED-EPOCHS.pt."""
        return self.path / "checkpoints"

    @property
    def packing(self) -> Path:
        """How trials share devices, where that was measured: a list, one entry for each cluster."""
        return self.path / "packing.json"

    @property
    def tune(self) -> Path:
        """Ray Tune's own results: `search/` and `promote/` below it."""
        return self.path / "tune"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard: `probes/`, and `students/` with a folder for each."""
        return self.path / "tensorboard"

    def named(self, path: Path) -> str:
        """`path` of this run as its user knows it."""
        return str(path)

    def for_workers(self, path: Path) -> "Path | Store":
        """Where workers on every node find `path` of this run."""
        return path

    def held(self, note: Callable[[str], None]) -> AbstractContextManager[object]:
        """While this process works on the run, which is all here then. Raises UserError where it
        cannot be had; `note` is told where that takes time."""
        from search.ledger import require_free

        require_free(self.ledger)
        return nullcontext()

    def is_worked_on(self) -> bool:
        """Whether a process works on the run, as far as this machine can know."""
        from search.ledger import worked_on

        return worked_on(self.ledger)

    def refresh(self) -> None:
        """Makes the tables and the ledger here what they are now. Raises UserError."""

    def publish(self, *paths: Path) -> None:
        """Sends files that were written, in this order. Raises OSError."""

    def publish_line(self, line: bytes) -> None:
        """Sends a line that was added to the ledger. Raises OSError."""

    def drop_checkpoint(self, name: str) -> None:
        (self.checkpoints / name).unlink(missing_ok=True)

    def drop_checkpoints(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def kept_students(self, pattern: str) -> list[Path]:
        """The students of full length whose names match, such as `IDENTITY-*.pt`."""
        return sorted(self.students.glob(pattern))

    def require_new(self) -> None:
        """Raises UserError unless a run may be written here; writes nothing."""
        try:
            self._require_new()
        except OSError as error:  # a name too long, a folder that may not be looked into
            raise UserError(f"{self.path} cannot be made: {error.strerror}") from None

    def _require_new(self) -> None:
        if self.path.is_symlink() and not self.path.exists():
            raise UserError(f"{self.path} is a link to nowhere: name a new folder with --run")
        if self.marker.exists():
            raise UserError(f"{self.path} holds a run already: name another folder with --run")
        if self.path.exists() and not (self.path.is_dir() and self._holds_nothing()):
            raise UserError(
                f"{self.path} exists and is not a run of Augury: name a new folder with --run"
            )
        existing = next(parent for parent in (self.path, *self.path.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UserError(f"{self.path} cannot be made: {existing} is no folder to write to")

    def _holds_nothing(self) -> bool:
        """But for what a kill in `create` left: a ledger that is empty, and with it the config."""
        inside = {path.name for path in self.path.iterdir()}
        ours = {name for name in inside if name.endswith(".tmp")} | {self.config.name}
        begun = self.ledger.is_file() and self.ledger.stat().st_size == 0
        return inside <= (ours | {self.ledger.name} if begun else set())

    def create(self, config_yaml: str, made_by: dict[str, Any]) -> None:
        """Lays out the folder, with an empty ledger; `made_by` goes into the marker. Raises
        UserError where a run has come there meanwhile."""
        from search.ledger import opened

        self.require_new()
        self.path.mkdir(parents=True, exist_ok=True)
        marker = {"format": FORMAT, "version": VERSION, **made_by}
        with opened(self.ledger):  # of two that come to it at the same time one makes the run
            self.require_new()
            write_text(self.config, config_yaml)
            write_text(self.marker, json.dumps(marker, indent=2) + "\n")

    @classmethod
    def open(cls, where: Path | str) -> "RunFolder":
        """The run at a path or an address; raises UserError where there is none or it is of
        another version."""
        folder = cls.at(where)
        folder.read_marker()
        return folder

    def read_marker(self) -> dict[str, Any]:
        """What `create` was told has made the run; raises UserError as `open` does."""
        try:
            marker = json.loads(self.marker.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise UserError(
                f"{self} is not a run: it holds no readable {self.marker.name}"
            ) from None
        if not isinstance(marker, dict) or marker.pop("format", None) != FORMAT:
            raise UserError(f"{self.named(self.marker)} is not the marker of a run of Augury")
        found = marker.pop("version", None)
        if found != VERSION:
            raise UserError(
                f"{self.named(self.marker)}: version {found!r} is not known, "
                f"this Augury reads {VERSION}"
            )
        return marker

    def read_verdict(self) -> dict[str, Any] | None:
        """What promotion found; None where it has not come to that. Raises UserError for a file
        that is no verdict."""
        try:
            found = json.loads(self.verdict.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("sentence"), str):
            raise UserError(f"{self.named(self.verdict)}: is not a verdict that can be read")
        return found


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
