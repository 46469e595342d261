"""Where teachers, decoded images and downloads are kept between runs."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spaces.errors import UserError

ABANDONED = 7 * 24 * 3600  # seconds after which nobody will finish what is unfinished


def cache_folder() -> Path:
    """$AUGURY_CACHE, else `augury` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("AUGURY_CACHE") or Path(base) / "augury")


def made_folder(name: str, what: str) -> Path:
    """The folder `name` of the cache, made where it is not there; `what` is kept in it. Raises
    UserError where it cannot be made."""
    path = cache_folder() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: {what} cannot be kept here: {error.strerror}; set AUGURY_CACHE"
        ) from None
    return path


def make_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes `folder` unless it is there, whole or not at all: `make` fills another one, which is
    then renamed.

    One process of a machine makes it while the others wait. After a kill the next one gives `make`
    what the killed one left. Raises UserError where it cannot be written, as on a full disk.
    """
    if folder.exists():
        return
    unfinished = folder.with_suffix(".unfinished")
    try:
        with _alone(folder):
            if folder.exists():
                return
            _forget_abandoned(folder.parent)
            unfinished.mkdir(exist_ok=True)
            make(unfinished)
            unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"{unfinished}: cannot be written: {error.strerror}") from None


def reserve(path: Path) -> None:
    """Gives the sparse file `path` its place on the disk, so that a full disk is an OSError here:
    whoever writes through a mapping is killed by a signal."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@contextmanager
def _alone(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of `folder`, which a kill gives back; without `wait` raises BlockingIOError
    where another process holds it."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _forget_abandoned(folder: Path) -> None:
    """Removes what killed processes left in `folder` long ago and nobody came back to."""
    for path in folder.glob("*.unfinished"):
        if time.time() - path.stat().st_mtime > ABANDONED:
            with suppress(BlockingIOError), _alone(path, wait=False):
                shutil.rmtree(path, ignore_errors=True)
