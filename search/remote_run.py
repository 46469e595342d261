"""A run at an address: s3://, gs:// or what fsspec reaches.

A process works in a copy of its own, which lasts as long as the process; the address has the truth.
What is written is sent before the search goes on, as it is synced in a folder: files whole, and
the ledger line by line, since an object cannot be added to. `trials/` has it as objects
SITTING/LINE.jsonl. Those of the last sitting, in their order, are the ledger; the first of them is
all that was known before. Workers read and write `checkpoints/` and `students/` by themselves.
"""

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from search.claim import BEAT, DEAD, SIGNS, Claim
from search.run_folder import RunFolder
from search.storage import StorageError, Store
from spaces.errors import UserError

LINES = "trials"
TOGETHER = 500  # lines after which the ledger is sent whole again, so that it is quickly read
AT_ONCE = 16  # requests
T = TypeVar("T")


class RemoteRun(RunFolder):
    """The copy in which this process works on the run at an address.

    Raises UserError for an address that other processes do not see, or with credentials in it.
    """

    def __init__(self, address: str) -> None:
        if (scheme := urlsplit(address).scheme) in ("memory", "local"):
            raise UserError(
                f"{scheme}:// is not seen by other processes: "
                "name a shared folder, s3:// or gs:// for a run"
            )
        self.store = Store(address)
        copy = tempfile.mkdtemp(prefix="augury-run-")
        weakref.finalize(self, shutil.rmtree, copy, ignore_errors=True)
        super().__init__(copy)
        self._claim: Claim | None = None
        # Of others: the latest, when it was seen first, and whether it is one of a living process.
        self._signs: dict[str, tuple[tuple[int | None, int], float, bool]] = {}
        self._sitting, self._lines = 0, 0

    def __str__(self) -> str:
        return self.store.address  # with its options, since commands are shown with it

    @property
    def name(self) -> str:
        return Path(str(self.store)).name

    def named(self, path: Path) -> str:
        return str(self.store.at(self._name(path)))

    def for_workers(self, path: Path) -> Store:
        return self.store.at(self._name(path))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix() if path != self.path else ""

    def _require_new(self) -> None:
        there = _said(self.store.listing)
        if self._name(self.marker) in there:
            raise UserError(f"{self} holds a run already: name another address with --run")
        # What a kill in `create` left is a ledger that is empty, and with it the config.
        lines = {name for name in there if name.startswith(f"{LINES}/")}
        begun = lines and not any(there[name].size for name in lines)
        ours = lines | {self._name(self.config)} if begun else set()
        if any(not name.startswith(f"{SIGNS}/") for name in there.keys() - ours):
            raise UserError(f"{self} is not empty and no run of Augury: name a new one with --run")

    def create(self, config_yaml: str, made_by: dict[str, Any]) -> None:
        super().create(config_yaml, made_by)
        self._begin_sitting()
        self.publish(self.config, self.marker)

    def read_marker(self) -> dict[str, Any]:
        if not self.marker.exists():
            self._bring(lambda name: name != self._name(self.teacher))
        return super().read_marker()

    @contextmanager
    def held(self, note: Callable[[str], None]) -> Iterator[None]:
        with Claim(self.store).held(note) as claim:
            self._claim = claim
            self.refresh()
            self._bring(lambda name: name == self._name(self.teacher))
            try:
                yield
            finally:
                self._claim = None

    def is_worked_on(self) -> bool:
        """By the signs of life at the address; a dead one counts for half a minute.

        The store's clock may not be ours: a sign lives if it changes, whatever its time says; only
        one that was never seen before and seems to be of just now is believed.
        """
        if self._claim is not None:
            return True
        until = time.monotonic() + 2 * BEAT
        while (alive := self._signs_live()) is None and time.monotonic() < until:
            time.sleep(BEAT / 5)
        return bool(alive)

    def _signs_live(self) -> bool | None:
        """None where signs have not been seen for long enough to be known as dead."""
        now, doubtful = time.monotonic(), False
        for name, info in _said(lambda: self.store.listing(SIGNS)).items():
            sign = (info.mtime_ns, info.size)
            age = None if info.mtime_ns is None else time.time() - info.mtime_ns / 1e9
            before = self._signs.get(name)
            if before is None:
                recent = age is not None and 0 <= age < DEAD
                self._signs[name] = before = (sign, now, recent)
            elif before[0] != sign:
                self._signs[name] = before = (sign, now, True)
            _, seen, lives = before
            if lives and now - seen < DEAD:
                return True
            doubtful |= not lives and now - seen < 2 * BEAT
        return None if doubtful else False

    def refresh(self) -> None:
        self._bring(lambda name: name != self._name(self.teacher))
        ledger = _said(self._read_ledger)
        if ledger is not None:
            self.ledger.write_bytes(ledger)

    def _bring(self, wanted: Callable[[str], bool], below: str = "") -> None:
        """The files right below that are wanted."""

        def bring() -> None:
            for name in self.store.listing(below, deep=False):
                if wanted(name):
                    self.store.bring(name, self.path / name)

        _said(bring)

    def publish(self, *paths: Path) -> None:
        self._confirm()
        for path in paths:
            self.store.send(path, self._name(path))

    def publish_line(self, line: bytes) -> None:
        self._confirm()
        if not self._sitting or self._lines == TOGETHER:
            self._begin_sitting()
        else:
            self.store.put(f"{LINES}/{self._sitting:06d}/{self._lines:06d}.jsonl", line)
            self._lines += 1

    def _begin_sitting(self) -> None:
        """Sends the whole ledger as the first object of a sitting, and takes away all before."""
        before = {name.split("/")[1] for name in self.store.listing(LINES)}
        self._sitting, self._lines = 1 + max(map(int, before), default=0), 1
        self.store.put(f"{LINES}/{self._sitting:06d}/000000.jsonl", self.ledger.read_bytes())
        for sitting in before:
            self.store.remove_all(f"{LINES}/{sitting}")

    def _read_ledger(self) -> bytes | None:
        """None where there is none; StorageError where a line of it is missing."""
        names = sorted(self.store.listing(LINES))
        if not names:
            return None
        last = names[-1].rpartition("/")[0]
        of_last = [name for name in names if name.startswith(f"{last}/")]
        with ThreadPoolExecutor(AT_ONCE) as requests:
            lines = list(requests.map(self.store.get, of_last))
        if of_last != [f"{last}/{number:06d}.jsonl" for number in range(len(lines))]:
            raise StorageError(str(self.store.at(last)), "a line of the ledger is missing")
        if None in lines:  # another sitting has begun meanwhile
            return self._read_ledger()
        return b"".join(line for line in lines if line is not None)

    def _confirm(self) -> None:
        assert self._claim is not None, "a run at an address is written by who holds it"
        self._claim.confirm()

    def drop_checkpoint(self, name: str) -> None:
        self._confirm()
        self.store.remove(f"{self.checkpoints.name}/{name}")

    def drop_checkpoints(self) -> None:
        self._confirm()
        self.store.remove_all(self.checkpoints.name)

    def kept_students(self, pattern: str) -> list[Path]:
        self._bring(lambda name: fnmatch(Path(name).name, pattern), self.students.name)
        return super().kept_students(pattern)


def _said(action: Callable[[], T]) -> T:
    """What `action` returns; what goes wrong with the address is the user's to mend."""
    try:
        return action()
    except StorageError as error:
        raise UserError(f"{error.where}: cannot be used: {error.reason}") from None
