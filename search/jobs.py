"""Searches as jobs of a Ray cluster, of which only the dashboard's port need be reachable.

A job's log carries what `search.job_driver` tells for machines: from it comes how far the run is,
and by a second small job, which packs the run's files into its own log, `fetch` brings them.
"""

import asyncio
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import aiohttp
from ray.job_submission import JobDetails

from search.errors import ClusterError
from search.job_log import Reader, machine_lines, packed
from search.job_package import CONFIG, stage, stage_code
from search.job_server import SECONDS_TO_WORK, job_server
from search.run_folder import RunFolder
from spaces.errors import UserError

if TYPE_CHECKING:
    from search.config import SearchConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ENDED = ("succeeded", "failed", "stopped")
LOST = (RuntimeError, OSError, aiohttp.ClientError)  # a connection that brings a log
SECONDS_BETWEEN = 2.0  # readings of a log that does not come by itself
KIND = "augury"  # key of a job's metadata; `search` or `fetch`


@dataclass(frozen=True)
class Job:
    """A search on a cluster, as its job and the job's log tell it."""

    id: str
    status: str  # pending, running, succeeded, failed or stopped
    run: str
    dashboard: str
    began_at: float | None  # seconds since 1970
    ended_at: float | None
    standing: dict[str, Any] = field(default_factory=dict)  # of `search.standing`
    said: str | None = None  # how it ended
    exit_code: int | None = None
    killed: bool = False  # stopped before it could say how it ended

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class Cluster:
    """The jobs of the cluster whose dashboard `job_server` finds; raises what that raises."""

    def __init__(self, address: str | None = None, ca: Path | None = None) -> None:
        self._client = job_server(address, ca)
        self.address = self._client.get_address()

    def submit(
        self, config: "SearchConfig", *, name: str | None = None, run: str | None = None
    ) -> Job:
        """Begins a job that goes on with the run in the folder `run` of the cluster, or begins it.

        Raises UserError where `name` or `run` cannot be, or the config cannot be shipped.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        stamped = f"{config.data.name}-{stamp}-{secrets.token_hex(2)}"
        name = checked(stamped if name is None else name)
        run = self._on_the_head(name) if run is None else _of_the_cluster(run)
        with tempfile.TemporaryDirectory(prefix="augury-") as folder:
            stage(config, Path(folder))
            self._start(name, ["search", CONFIG, run], Path(folder), kind="search", run=run)
        return self.job(name)

    def _on_the_head(self, name: str) -> str:
        """The folder of a run for which none is named; raises UserError where other nodes than the
        head have to reach it, or will."""
        nodes = self._client.nodes()
        if several := _several(nodes):
            raise UserError(
                f"the cluster {several}, and without --run the run would lie on the disk of its "
                "head alone: name a folder that all of its machines share, by --run /FOLDER, or "
                "--run s3://BUCKET/NAME"
            )
        return f"~/augury-runs/{name}"

    def jobs(self) -> list[Job]:
        """Augury's searches, the latest first, without what their logs tell."""
        found = [d for d in self._client.list_jobs() if (d.metadata or {}).get(KIND) == "search"]
        return [self._job(d, "") for d in sorted(found, key=lambda d: -(d.start_time or 0))]

    def job(self, name: str) -> Job:
        """How the search of this id stands; raises UserError where there is none."""
        details = self._details(name)
        return self._job(details, self.log(name))

    def log(self, name: str) -> str:
        """All that the job's log has by now, lines for machines included."""
        self._details(name)
        with suppress(ClusterError):  # there is none before the job has begun
            return self._client.get_job_logs(name)
        return ""

    def follow(self, name: str, write: Callable[[str], None]) -> Job:
        """Hands whole lines of the job's log, but for those for machines, to `write` until the job
        has ended. A connection that is lost is made again, for a minute."""
        self._details(name)  # one that is not there is not waited for
        reader = Reader(write)
        while self._status(name) not in ENDED:
            seen, began = reader.seen, time.monotonic()
            with suppress(*LOST):
                asyncio.run(self._tail(name, reader))
            if reader.seen == seen:  # nothing was said, or a proxy lets no such connection through
                with suppress(UserError, ClusterError):
                    reader.take_again(self.log(name))
                time.sleep(max(SECONDS_BETWEEN - (time.monotonic() - began), 0.2))
        log = self.log(name)
        reader.take_all(log)
        return self._job(self._details(name), log)

    def stop(self, name: str) -> Job:
        """Asks the job to stop and waits until it has."""
        status = _status_of(self._details(name))
        if status in ENDED:
            raise UserError(f"the job {name} is over: it {_did(status)}")
        self._client.stop_job(name)
        while self._status(name) not in ENDED:
            time.sleep(0.5)
        return self.job(name)

    def fetch(self, name: str, to: Path, *, students: bool = False) -> list[Path]:
        """Brings the files of the job's run to the folder `to`; returns where they lie.

        Raises UserError where the run is not there yet, and where `to` holds something else.
        """
        run = self._job(self._details(name), "").run
        errand = f"{name[:100]}-fetch-{secrets.token_hex(4)}"
        with tempfile.TemporaryDirectory(prefix="augury-") as folder:
            stage_code(Path(folder))
            asked = ["pack", run, *(["students"] if students else [])]
            self._start(errand, asked, Path(folder), kind="fetch", of=name)
        try:
            log = self._log_of_errand(errand)
        finally:
            with suppress(Exception):  # it would only be listed
                self._client.delete_job(errand)
        return packed(log, to)

    def _start(
        self, name: str, arguments: list[str], folder: Path, *, kind: str, **metadata: str
    ) -> None:
        """Begins a job of the driver in the staged `folder`."""
        # Ray gives the line to a shell, whose place the driver takes: signals are to reach it.
        line = "exec " + shlex.join(["python", "-m", "search.job_driver", *arguments])
        self._client.submit_job(
            entrypoint=line,
            submission_id=name,
            runtime_env={"working_dir": str(folder)},
            metadata={KIND: kind, **metadata},
        )

    def _log_of_errand(self, errand: str) -> str:
        deadline = time.monotonic() + 5 * SECONDS_TO_WORK
        while _status_of(details := self._client.get_job_info(errand)) not in ENDED:
            if time.monotonic() > deadline:
                self._client.stop_job(errand)
                raise ClusterError(
                    f"the job {errand}, which packs the run, does not come to an end"
                )
            time.sleep(0.3)
        log = self._client.get_job_logs(errand)
        told = machine_lines(log)
        if told.get("exit") == 2:
            raise UserError(str(told["said"]))
        if told.get("exit") != 0:
            raise ClusterError(f"the run could not be packed: {_last_words(details, log)}")
        return log

    def _details(self, name: str) -> JobDetails:
        details = self._client.get_job_info(checked(name))
        if (details.metadata or {}).get(KIND) != "search":
            raise UserError(f"the job {name} is not a search of Augury: see augury jobs")
        return details

    def _status(self, name: str) -> str:
        """Also over a connection that is lost for up to a minute."""
        deadline = time.monotonic() + SECONDS_TO_WORK
        while True:
            try:
                return _status_of(self._details(name))
            except (UserError, ClusterError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    async def _tail(self, name: str, reader: Reader) -> None:
        reader.from_the_start()
        async with aclosing(self._client.tail_job_logs(name)) as texts:
            async for text in texts:
                reader.take(text)

    def _job(self, details: JobDetails, log: str) -> Job:
        told, name = machine_lines(log), details.submission_id or ""
        status = _status_of(details)
        said, code = told.get("said"), told.get("exit", details.driver_exit_code)
        if status == "failed" and "said" not in told:
            said = _last_words(details, log)
        return Job(
            id=name,
            status=status,
            run=str(told.get("run") or (details.metadata or {}).get("run")),
            dashboard=f"{self.address}/#/jobs/{name}",
            began_at=_seconds(details.start_time),
            ended_at=_seconds(details.end_time),
            standing=told.get("standing", {}),
            said=said if status in ENDED else None,
            exit_code=code if status in ENDED else None,
            killed=bool(log) and status == "stopped" and "exit" not in told,
        )


def checked(name: str) -> str:
    """`name`, if a job can be called so; raises UserError where it cannot."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"job {name!r}: a name begins with a letter or digit and has letters, digits and . _ - "
            "after it, 128 at most"
        )
    return name


def _status_of(details: JobDetails) -> str:
    return details.status.value.lower()


def _several(nodes: list[dict[str, Any]]) -> str | None:
    """How the cluster has more machines than one or may get them, None where it does not.

    Ray's launcher and KubeRay name a group for each node that they start, `ray start` does not.
    """
    if len(nodes) > 1:
        return f"has {len(nodes)} nodes"
    grows = any("ray.io/node-group" in (node.get("labels") or {}) for node in nodes)
    return "may grow by itself" if grows else None


def _of_the_cluster(run: str) -> str:
    if "://" in run:
        RunFolder.at(run)  # an address that a run can have; its credentials are the cluster's own
        return run
    if not (PurePosixPath(run).is_absolute() or run.startswith("~/")):
        raise UserError(
            f"--run {run}: give the absolute path that it has on the cluster, or an address "
            "such as s3://BUCKET/NAME; with several nodes all of them must reach it"
        )
    return run


def _last_words(details: JobDetails, log: str) -> str:
    """Of a job that did not say how it ended."""
    lines = [line for line in log.splitlines() if line.strip()]
    message = (details.message or "").strip().splitlines()
    return (lines or message or ["nothing is known of the reason"])[-1].strip()


def _did(status: str) -> str:
    return {"succeeded": "succeeded", "failed": "failed"}.get(status, "was stopped")


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
