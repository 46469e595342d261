"""What the commands have in common: their options, and results as JSON."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[
    Path | None,
    typer.Argument(help="YAML file; without one the embedded search on handwritten digits runs."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Change one value of the config, e.g. search.trials=50; may be given often.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]


def print_json(content: Any) -> None:
    """Prints `content` on stdout; numbers that JSON does not know become null."""
    print(json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
