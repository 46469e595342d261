"""`augury validate` and `augury compare`: what a run's ranking is worth, and runs side by side."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from search.options import Json, Quiet, print_json

if TYPE_CHECKING:
    from search.progress import Listener
    from search.run_folder import RunFolder

app = typer.Typer()


@app.command()
def validate(
    run: Annotated[str, typer.Argument(help="Folder or address of a search with probes.")],
    schemes: Annotated[
        str | None,
        typer.Option(help="Schemes or policy files, separated by commas; default: warm_start's."),
    ] = None,
    *,
    random: Annotated[int, typer.Option(min=0, help="Policies of the space beside them.")] = 5,
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="Students of each.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure which figure of a probe foretells the full length on these data.

    Policies are probed for 1, 2, 4, ... epochs and trained to full length, but for what the run has
    already. Rank correlations with bootstrap intervals then say which figure to trust and how short
    a probe may be; [b]augury search --objective auto[/b] goes by that.
    """
    from search.run_folder import RunFolder
    from spaces.schemes import SCHEMES

    folder = RunFolder.open(run)

    from search.config import load_config
    from search.console import print_validation, progress
    from search.run import validate_run

    if schemes is None:
        asked = load_config(folder.config).search.warm_start
        names = [name for name in asked if name.partition("+")[0] in SCHEMES]
    else:
        names = [name.strip() for name in schemes.split(",") if name.strip()]
    try:
        with progress(quiet=quiet) as listen:
            found = validate_run(folder, listen, schemes=names, random=random, seeds=seeds)
            _show(folder, listen)
    except KeyboardInterrupt:
        print("augury: stopped; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print_json({"run": str(folder)} | found.as_dict())
    else:
        print_validation(found, folder)


def _show(folder: "RunFolder", listen: "Listener") -> None:
    """Writes the report anew, with what was found; an address has the one of the search."""
    from search.report import images_of, write_report

    if folder.named(folder.report) != str(folder.report):
        return
    try:
        write_report(folder, images_of(folder)[0])
    except OSError as error:
        listen.note(f"{folder.report} was not written: {error.strerror}")


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Folders or addresses of two searches or more.")
    ],
    as_json: Json = False,
) -> None:
    """Set runs side by side: verdicts, what differs in their configs, and policies that several
    trained to full length, paired by seed."""
    from search.compare import compare as compare_runs
    from search.console import print_comparison
    from search.run_folder import RunFolder

    folders = [RunFolder.open(run) for run in runs]
    for folder in folders:
        folder.refresh()
    found = compare_runs(folders)
    if as_json:
        print_json(found.as_dict())
    else:
        print_comparison(found)
