"""Every path of a run, so that writer, export and documentation cannot disagree."""

import json
import os
from pathlib import Path
from typing import Any

from spaces.atomic_write import atomic_write
from spaces.errors import UserError

FORMAT = "augury-run"
VERSION = 1


class RunFolder:
    """A folder with everything that one search produced; `run.json` marks it as ours."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()  # Ray's workers change directory

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
        """The students of full length: IDENTITY-SEED-EPOCHS-IMAGES.pt."""
        return self.path / "students"

    @property
    def verdict(self) -> Path:
        """What promotion found, in words and figures."""
        return self.path / "verdict.json"

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
    def tune(self) -> Path:
        """Ray Tune's own results: `search/` and `promote/` below it."""
        return self.path / "tune"

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
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(
                f"{self.path} exists and is not a run of Augury: name a new folder with --run"
            )
        existing = next(parent for parent in (self.path, *self.path.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UserError(f"{self.path} cannot be made: {existing} is no folder to write to")

    def create(self, config_yaml: str, made_by: dict[str, Any]) -> None:
        """Lays out the folder, with an empty ledger; `made_by` goes into the marker."""
        self.require_new()
        self.path.mkdir(parents=True, exist_ok=True)
        marker = {"format": FORMAT, "version": VERSION, **made_by}
        write_text(self.config, config_yaml)
        self.ledger.touch()
        write_text(self.marker, json.dumps(marker, indent=2) + "\n")

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """The run at `path`; raises UserError where there is none or it is of another version."""
        folder = cls(path)
        folder.read_marker()
        return folder

    def read_marker(self) -> dict[str, Any]:
        """What `create` was told has made the run; raises UserError as `open` does."""
        try:
            marker = json.loads(self.marker.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise UserError(
                f"{self.path} is not a run: it holds no readable {self.marker.name}"
            ) from None
        if not isinstance(marker, dict) or marker.pop("format", None) != FORMAT:
            raise UserError(f"{self.marker} is not the marker of a run of Augury")
        found = marker.pop("version", None)
        if found != VERSION:
            raise UserError(
                f"{self.marker}: version {found!r} is not known, this Augury reads {VERSION}"
            )
        return marker


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
