"""One process at a time searches at an address: signs of life that others see."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pyarrow.fs import FileInfo

from search.storage import StorageError, Store
from spaces.errors import UserError

SIGNS = "drivers"
BEAT, DEAD = 5.0, 30.0  # seconds between two signs, and those after which there will be none


@dataclass
class _Sign:
    """Of another process: when it was first seen as it is, by our clock; when it was written, by
    the store's clock where it has one; and its size, which is another one every time."""

    seen: float
    written: float | None
    size: int


class Claim:
    """The sign of this process at `store`: an object of its own, written anew again and again.

    Who begins writes its sign first and looks for others then, so that of two who begin at the same
    time one sees the other at least, in a store that lists what was written, as S3 and Google's do.
    Who sees another sign change gives up. A sign that does not change for `dead` seconds is taken
    away; if its process was only held up, `confirm` tells it so.
    """

    def __init__(self, store: Store, beat: float = BEAT, dead: float = DEAD) -> None:
        self._store, self._beat, self._dead = store, beat, dead
        token = secrets.token_hex(4)
        self._name = f"{SIGNS}/{socket.gethostname()}-{os.getpid()}-{token}"
        self._signs, self._at = 0, 0.0
        self._lost = False
        self._writing, self._over = threading.Lock(), threading.Event()

    def confirm(self) -> None:
        """Raises StorageError where another process has taken over, or may have."""
        if time.time() - self._at > 2 * self._beat:  # also after a sleep of the whole machine
            self._renew()
        if self._lost:
            raise StorageError(str(self._store), "another process goes on with the search there")

    def _renew(self) -> None:
        with self._writing:
            if self._signs and self._name not in self._store.listing(SIGNS):
                self._lost = True
            if not self._lost:
                self._signs += 1
                self._store.put(self._name, b"alive" * (1 + self._signs % 2))
                self._at = time.time()

    def _keep_renewing(self) -> None:
        while not self._lost and not self._over.wait(self._beat):
            with suppress(StorageError):  # `confirm` finds out
                self._renew()

    def _wait_for_others(self, note: Callable[[str], None]) -> None:
        others: dict[str, _Sign] = {}
        while True:
            self._renew()
            found, now = self._store.listing(SIGNS), time.monotonic()
            ours = _written(found.pop(self._name, None))
            for name, info in found.items():
                sign = _Sign(now, _written(info), info.size)
                if (known := others.setdefault(name, sign)) is sign:
                    note(f"{_who(name)} has searched there: waiting for a sign of life")
                elif (known.written, known.size) != (sign.written, sign.size):
                    raise UserError(f"{self._store}: {_who(name)} is searching there")
                silent = now - known.seen
                if ours is not None and known.written is not None:
                    silent = max(silent, ours - known.written)
                if silent > self._dead:
                    self._store.remove(name)
                    del others[name]
            others = {name: sign for name, sign in others.items() if name in found}
            if not others:
                return
            time.sleep(self._beat / 2)

    @contextmanager
    def held(self, note: Callable[[str], None]) -> Iterator["Claim"]:
        """Until the end of the block this process searches at the store. Raises UserError where
        another one does, or where the store cannot be written."""
        try:
            self._renew()
            try:
                self._wait_for_others(note)
            except BaseException:
                with suppress(StorageError):
                    self._store.remove(self._name)
                raise
        except StorageError as error:
            raise UserError(f"{error.where}: cannot be used: {error.reason}") from None
        renewing = threading.Thread(target=self._keep_renewing, daemon=True)
        renewing.start()
        try:
            yield self
        finally:
            self._over.set()
            renewing.join()
            with suppress(StorageError):
                self._store.remove(self._name)


def _written(info: FileInfo | None) -> float | None:
    return None if info is None or info.mtime_ns is None else info.mtime_ns / 1e9


def _who(name: str) -> str:
    host, process, _ = name.removeprefix(f"{SIGNS}/").rsplit("-", 2)
    return f"process {process} on {host}"
