"""`augury submit` and what becomes of it: searches as jobs of a Ray cluster, from a laptop."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.options import Config, Json, Overrides, print_json
from search.progress import duration

if TYPE_CHECKING:
    from search.jobs import Cluster, Job

app = typer.Typer()

Address = Annotated[
    str | None,
    typer.Option(
        metavar="http://HEAD:8265",
        help="Dashboard of the cluster; else $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, this machine.",
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="Certificates to trust for https; else $AUGURY_CA."),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Of the job, as augury jobs lists it.")]


@app.command()
def submit(
    config: Config = None,
    overrides: Overrides = None,
    *,
    address: Address = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Absolute path on the cluster, which all nodes share where there are several, or "
            "an address such as s3://BUCKET/NAME. Default: ~/augury-runs/ID on the head, for a "
            "cluster that is one machine and stays one.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Id of the job: letters, digits and . _ -")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the log; exit as the search did.")
    ] = False,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Search on a Ray cluster: begin a job there, or one that goes on with the run at --run.

    Augury goes along as it is here, and policies and modules that the config names. Data and
    weights do not: they are looked up on the cluster by their absolute paths. A token is taken from
    $AUGURY_TOKEN or $RAY_AUTH_TOKEN.
    """
    from search.config import load_config

    settings = load_config(config, overrides or ())
    cluster = _cluster(address, ca)
    job = cluster.submit(settings, name=name, run=run)
    if not as_json:
        print(f"job        {job.id}\nrun        {job.run}\ndashboard  {job.dashboard}", flush=True)
    if wait:
        try:
            job = cluster.follow(job.id, _to(sys.stderr if as_json else sys.stdout))
        except KeyboardInterrupt:
            goes_on = f"the job goes on: augury logs {job.id} --follow, augury stop {job.id}"
            print(f"augury: {goes_on}", file=sys.stderr)
            raise typer.Exit(130) from None
    if as_json:
        print_json(_as_dict(job))
    if wait:
        _exit_as(job)


@app.command()
def jobs(address: Address = None, ca: Ca = None, as_json: Json = False) -> None:
    """List the searches of a cluster, the latest first."""
    cluster = _cluster(address, ca)
    found = cluster.jobs()
    if as_json:
        keys = ("job", "status", "run", "dashboard", "began_at", "ended_at")
        print_json([{key: _as_dict(job)[key] for key in keys} for job in found])
        return
    width = max((len(job.id) for job in found), default=0)
    for job in found:
        print(f"{job.id:<{width}}  {job.status:<9}  {_took(job):>16}  {job.run}")


@app.command()
def status(job: JobId, address: Address = None, ca: Ca = None, as_json: Json = False) -> None:
    """Say how far a search is: its trials by state, the best so far, the time that is left."""
    cluster = _cluster(address, ca)
    found = cluster.job(job)
    if as_json:
        print_json(_as_dict(found))
    else:
        print("\n".join(_lines(found)))


@app.command()
def logs(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job has ended.")
    ] = False,
    address: Address = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Print what a job's search has said."""
    from search.job_log import Reader
    from spaces.errors import UserError

    if follow and as_json:
        raise UserError("--json prints a log that is whole: leave --follow out")
    cluster = _cluster(address, ca)
    if follow:
        cluster.follow(job, _to(sys.stdout))
        return
    log = cluster.log(job)
    lines: list[str] = []
    Reader(lines.append).take_all(log)
    if as_json:
        print_json({"job": job, "lines": lines})
    else:
        print("\n".join(lines))


@app.command()
def stop(job: JobId, address: Address = None, ca: Ca = None, as_json: Json = False) -> None:
    """Stop a job gently: epochs that run are finished, as long as the cluster waits for them."""
    cluster = _cluster(address, ca)
    found = cluster.stop(job)
    if as_json:
        print_json(_as_dict(found))
    else:
        print("\n".join(_lines(found)))


@app.command()
def fetch(
    job: JobId,
    *,
    to: Annotated[Path, typer.Option(metavar="DIR", help="New folder, or one fetched before.")],
    students: Annotated[
        bool, typer.Option("--students", help="The teacher and the promoted students, too.")
    ] = False,
    address: Address = None,
    ca: Ca = None,
    as_json: Json = False,
) -> None:
    """Bring a job's run here: ranking, best policy, verdict, config, ledger. Also while it runs."""
    cluster = _cluster(address, ca)
    files = cluster.fetch(job, to, students=students)
    if as_json:
        print_json({"job": job, "run": str(to), "files": [str(path) for path in files]})
    else:
        print("\n".join(map(str, files)))


def _cluster(address: str | None, ca: Path | None) -> "Cluster":
    from search.jobs import Cluster

    return Cluster(address, ca)


def _to(stream: Any) -> Any:
    return lambda line: print(line, file=stream, flush=True)


def _exit_as(job: "Job") -> None:
    if job.status == "succeeded":
        return
    code = job.exit_code if job.exit_code in (1, 2, 130) else 1
    if job.status == "stopped":
        code = 130
    print(f"augury: {_how_it_ended(job)}", file=sys.stderr)
    raise typer.Exit(code)


def _as_dict(job: "Job") -> dict[str, Any]:
    """For machines; times in seconds, since 1970 where they are `_at`."""
    return {
        "job": job.id,
        "status": job.status,
        "run": job.run,
        "dashboard": job.dashboard,
        "began_at": job.began_at,
        "ended_at": job.ended_at,
        "exit_code": job.exit_code,
        "said": job.said,
        "killed": job.killed,
        "standing": job.standing or None,
    }


def _lines(job: "Job") -> list[str]:
    now = job.standing
    lines = [f"job        {job.id}", f"status     {job.status}, {_took(job)}"]
    if now:
        found = sorted(now["states"].items())
        states = ", ".join(f"{count} {_state(state, job)}" for state, count in found)
        lines.append(
            f"{now['stage']:<9}  {sum(now['states'].values())} of {now['trials']}: {states}"
        )
        if now["best"] is not None:
            lines.append(f"best       {now['objective']} {now['best']:.4f}: {now['best_policy']}")
        if now["seconds_left"] is not None and not job.ended:
            lines.append(f"left       about {duration(now['seconds_left'])} of this stage")
    lines += [f"run        {job.run}", f"dashboard  {job.dashboard}"]
    return lines + ([_how_it_ended(job)] if job.ended else [])


def _state(state: str, job: "Job") -> str:
    return "to go on with" if state == "running" and job.ended else state


def _how_it_ended(job: "Job") -> str:
    go_on = f"go on with: augury submit CONFIG --run {shlex.quote(job.run)}"
    if job.killed:
        return (
            "the job was killed before its epochs were over, which are lost; to have it wait for "
            f"them, start the cluster with RAY_JOB_STOP_WAIT_TIME_S=600 in its environment; {go_on}"
        )
    if job.status == "stopped":
        return f"stopped; {go_on}"
    return job.said or job.status


def _took(job: "Job") -> str:
    return "" if job.began_at is None else duration((job.ended_at or time.time()) - job.began_at)
