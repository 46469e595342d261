"""`augury report`: a run as a page."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Folder or address of a run, finished or not.")],
    to: Annotated[
        Path | None,
        typer.Option(help="Another file for the page; default RUN/report.html, or NAME.html."),
    ] = None,
) -> None:
    """Show what a run found as one HTML page that opens offline.

    Also while the search runs. The figures lie in RUN/report too, as SVG and PNG with their data
    as CSV; with [b]--to[/b] the run is left as it is. So is a run at an address (s3://...), whose
    page is NAME.html here.
    """
    from search.report import images_of, write_report
    from search.run_folder import RunFolder
    from spaces.errors import UserError

    folder = RunFolder.open(run)
    folder.refresh()
    if to is None and folder.named(folder.report) != str(folder.report):
        to = Path(f"{folder.name}.html")  # the copy of the run ends with this process
    images, missing = images_of(folder)
    try:
        path = write_report(folder, images, to=to)
    except OSError as error:
        raise UserError(f"{to or folder.report}: cannot be written: {error.strerror}") from None
    if missing:
        print(f"without pictures: {missing}")
    print(f"report  {path}")
