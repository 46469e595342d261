"""What a Ray job of Augury runs on the cluster's head, and what it tells through the job's log.

The log is all that a laptop is sure to see of a job: only the dashboard's port need be open. Among
the lines for people the driver writes lines for machines, `@augury ` and a JSON object, from which
`search.jobs` knows how far the run is and how it ended.
"""

import base64
import io
import json
import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from spaces.errors import UserError

if TYPE_CHECKING:
    from search.config import SearchConfig
    from search.progress import Listener
    from search.run_folder import RunFolder
    from search.stages import SearchResult

TOLD = "@augury "  # begins a line for machines
PACKED = "@packed "  # begins a line of base64
LIMIT_MIB = 256  # of a packed run, compressed: the log passes through the memory of three processes
SECONDS_BETWEEN = 2.0  # lines about how far the run is


def main(arguments: list[str]) -> int:
    """`search CONFIG RUN` goes on with the run that is there, else begins it; `pack RUN` writes it
    to the log, `pack RUN students` with its networks. Returns the exit code, as of `augury`."""
    # Ray would end a driver that is stopped without letting it say so.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        match arguments:
            case ["search", config, run]:
                return _told_how_it_ended(lambda: _search(Path(config), _expanded(run)))
            case ["pack", run, *students]:
                return _told_how_it_ended(lambda: _pack(_expanded(run), students=bool(students)))
    except ModuleNotFoundError as error:
        return _ended(2, f"the cluster's Python has no package {error.name!r}: install it there")
    raise ValueError(arguments)


def _expanded(run: str) -> str:
    return run if "://" in run else str(Path(run).expanduser())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _told_how_it_ended(go: Callable[[], tuple[int, str]]) -> int:
    """Tells what `go` returns, its exit code and a sentence, or why it raised."""
    try:
        return _ended(*go())
    except UserError as error:
        return _ended(2, str(error))
    except (KeyboardInterrupt, SystemExit):  # Ray's own handler of SIGTERM exits
        return _ended(130, "stopped")


def _ended(code: int, said: str) -> int:
    tell(exit=code, said=said)
    if code:
        print(f"augury: {said}", file=sys.stderr)
    return code


def tell(**told: Any) -> None:
    """Writes a line for machines, in one piece: other threads write to the log as well."""
    line = TOLD + json.dumps(told | {"at": round(time.time(), 3)}) + "\n"
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), line.encode())


def _search(config: Path, run: str) -> tuple[int, str]:
    """Runs the search, whatever of it is there already; the sentence is the verdict."""
    from search.config import load_config
    from search.console import print_result, progress
    from search.errors import SearchFailedError
    from search.run import run_search
    from search.run_folder import RunFolder

    settings, folder = load_config(config), RunFolder.at(run)
    tell(run=str(folder))
    go = _resumed if _is_there(folder) else run_search
    try:
        with progress(quiet=False) as listen, published(folder):
            result = go(settings, folder, listen)
    except SearchFailedError as error:
        return 1, str(error)
    print_result(result, load_config(folder.config))  # where auto has become what it meant
    return 0, result.verdict.sentence


def _is_there(folder: "RunFolder") -> bool:
    try:
        folder.read_marker()
    except UserError:  # whoever begins a run says what else may be there
        return False
    return True


def _resumed(settings: "SearchConfig", folder: "RunFolder", listen: "Listener") -> "SearchResult":
    """Goes on with the run as `settings` say; raises UserError where it was begun with others."""
    from search.config import AUTO, differences, load_config
    from search.run import MAY_CHANGE, resume_search
    from search.run_folder import write_text

    if settings.search.objective == AUTO:  # the run keeps what that was when it began
        began = load_config(folder.config).search
        chosen = {"objective": began.objective, "probe_epochs": began.probe_epochs}
        settings = settings.model_copy(update={"search": settings.search.model_copy(update=chosen)})
    changed = differences(load_config(folder.config), settings)
    others = [said for key, said in changed.items() if not key.startswith(MAY_CHANGE)]
    if others:
        raise UserError(
            f"{folder} holds a run of another config: {'; '.join(others)}: "
            "name another folder with --run"
        )
    if changed and not folder.is_worked_on():
        with folder.held(listen.note):
            write_text(folder.config, settings.to_yaml())
            folder.publish(folder.config)
    return resume_search(folder, listen)


@contextmanager
def published(folder: "RunFolder") -> Iterator[None]:
    """Tells how far the run in `folder` is: whenever trials began or ended, and once a minute."""
    over = threading.Event()
    thread = threading.Thread(target=_publish, args=(folder, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _publish(folder: "RunFolder", over: threading.Event) -> None:
    from search.standing import standing

    last: dict[str, Any] = {}
    told_at, wait, start = 0.0, 0.0, time.monotonic()
    ending = False
    while not ending:
        ending = over.wait(wait)
        began = time.monotonic()
        with suppress(UserError, OSError):  # not laid out yet
            now = standing(folder).as_dict()
            lasting = {k: v for k, v in now.items() if not k.startswith("seconds")}
            if lasting != last or ending or began - told_at > 60:
                tell(standing=now)
                last, told_at = lasting, began
        # However long the ledger grows, reading it takes a twentieth of the time; however long the
        # search takes, the log, which status reads as a whole, stays at some megabytes.
        now_is = time.monotonic()
        wait = max(SECONDS_BETWEEN, 20 * (now_is - began), (now_is - start) / 300)


def _pack(run: str, *, students: bool) -> tuple[int, str]:
    """Writes the files of the run that a user wants, as base64 of a tar, to the log."""
    from search.run_folder import RunFolder

    folder = RunFolder.open(run)
    folder.refresh()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in files_of(folder, students=students):
            with suppress(FileNotFoundError):  # not there yet
                content = path.read_bytes()
                entry = tarfile.TarInfo(path.relative_to(folder.path).as_posix())
                entry.size, entry.mtime = len(content), int(path.stat().st_mtime)
                archive.addfile(entry, io.BytesIO(content))
            if buffer.tell() > LIMIT_MIB * 2**20:
                raise UserError(
                    f"{folder}: what is asked for is larger than {LIMIT_MIB} MiB: copy it "
                    "from the cluster's storage"
                )
    content = buffer.getvalue()
    for start in range(0, len(content), 3 * 1024):
        print(PACKED + base64.b64encode(content[start : start + 3 * 1024]).decode())
    tell(digest=sha256(content).hexdigest())
    return 0, f"packed {len(content):,} bytes"


def files_of(folder: "RunFolder", *, students: bool) -> list[Path]:
    """What `augury fetch` brings: all that is read of a run later, and its networks if asked."""
    small = [
        folder.marker,
        folder.config,
        folder.policies,
        folder.best_policy,
        folder.verdict,
        folder.ledger,
        folder.report,
        folder.validation,
        folder.validation.with_suffix(".csv"),
    ]
    networks = [folder.teacher, *folder.kept_students("*.pt")] if students else []
    return small + networks


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
