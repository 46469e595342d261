"""`augury watch` and `augury optuna`: a run while it is searched."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.jobs_cli import Address, Ca

if TYPE_CHECKING:
    from search.watch import Told

app = typer.Typer()


@app.command()
def watch(
    run: Annotated[
        str,
        typer.Argument(
            help="Folder or address of a run, or the id of a job: what --address or $RAY_ADDRESS "
            "names is asked, and ./NAME is always a folder."
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Show how it is now, and end.")] = False,
    address: Address = None,
    ca: Ca = None,
) -> None:
    """Watch a search: its best so far, what runs, what failed, the time that is left.

    Ends with the search: 0 where it is done, 1 where nobody works on it any more. Without a
    terminal there is a line whenever trials begin or end.
    """
    from rich.console import Console

    from search import watch as watching

    told = watching.watch(_look(run, address, ca), Console(), once=once)
    if not (once or told["done"]):
        raise typer.Exit(1)


@app.command("optuna")
def optuna_study(
    run: Annotated[str, typer.Argument(help="Folder or address of a run.")],
    to: Annotated[
        Path | None,
        typer.Option(help="File to write instead: .db for SQLite, else a journal."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep the file up to date until the search ends.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the dashboard.")] = 8080,
) -> None:
    """Show the probes of a run on Optuna's dashboard, also while they are searched.

    Or write them as a study to a file, which optuna-dashboard and Optuna's own plots and
    importances read. The run itself is left as it is.
    """
    from search.run_folder import RunFolder
    from spaces.errors import UserError

    folder = RunFolder.open(run)
    folder.refresh()
    if to is None:
        if follow:
            raise UserError("--follow keeps the file of --to up to date: name one")
        from search.optuna_dashboard import serve

        serve(folder, port)
        return

    from search.optuna_export import export_study, follow_study

    if follow:
        follow_study(folder, to)
    else:
        print(f"{export_study(folder, to)} trials in {to}")


def _look(run: str, address: str | None, ca: Path | None) -> "Callable[[], Told]":
    """What tells how the run or job is; raises UserError where there is none, or where `run` may be
    either."""
    from search.job_server import ADDRESSES, first_set
    from search.run_folder import RunFolder
    from search.standing import look_at
    from spaces.errors import UserError

    may_be_job = "/" not in run and run[:1].isalnum()
    named = address or first_set(ADDRESSES)
    is_run = RunFolder(run).marker.is_file()
    if may_be_job and named and not address and is_run:
        raise UserError(
            f"{run}: may be the run in this folder or a job of the cluster at {named}: watch "
            f"./{run}, or give --address for the job"
        )
    if address or (may_be_job and (named or not Path(run).exists()) and not is_run):
        try:
            return _look_at_job(run, address, ca)
        except UserError as error:
            if named:
                raise
            raise UserError(
                f"{run}: is no folder here, and there is no cluster to ask for a job: {error}"
            ) from None
    look = look_at(RunFolder.open(run))
    return lambda: look().as_dict()


def _look_at_job(name: str, address: str | None, ca: Path | None) -> "Callable[[], Told]":
    from search.jobs import Cluster

    cluster = Cluster(address, ca)
    cluster.job(name)

    def told() -> "Told":
        job = cluster.job(name)
        return {"done": False, **job.standing, "working": not job.ended}

    return told
