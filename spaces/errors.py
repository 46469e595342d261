"""What a user is told: one sentence that says what was wrong, where, and what would be right."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails


class UserError(Exception):
    """A mistake that the user can mend; the command line prints it alone and exits with 2."""


def by_nearness(name: str, valid: Iterable[str]) -> list[str]:
    """`valid`, most similar to `name` first."""
    return sorted(valid, key=lambda v: -difflib.SequenceMatcher(None, name, v).ratio())


def unknown_name(kind: str, name: str, valid: Iterable[str], where: str = "") -> UserError:
    """The error for a name that is not in `valid`, which it lists, nearest first."""
    place = f" in {where}" if where else ""
    nearest, *others = by_nearness(name, valid)
    rest = f" (also known: {', '.join(others)})" if others else ""
    return UserError(f"unknown {kind} {name!r}{place}: did you mean {nearest!r}?{rest}")


def from_validation(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    """One sentence from pydantic's report: one error, its key and what would be right."""
    # A misspelt key explains the missing one, and where a value may be of several kinds the deepest
    # complaint is of the kind that was meant.
    telling = ("extra_forbidden", "value_error")
    detail = max(error.errors(), key=lambda d: (d["type"] in telling, len(d["loc"])))
    if detail["type"] == "extra_forbidden":
        *parents, name = [part for part in detail["loc"] if isinstance(part, str)]
        parents = [parent for parent in parents if _is_key(parent)]
        valid = _fields_at(model, parents)
        scope = ".".join(parents)
        return unknown_name(f"key under {scope}" if scope else "key", name, valid, where)
    return UserError(f"{where}: {_sentence(detail)}")


# What YAML and JSON call what pydantic has Python's words for.
_PLAIN_WORDS = {
    "model_type": "should be a mapping of keys to values",
    "dict_type": "should be a mapping of keys to values",
    "tuple_type": "should be a list",
}
_LAST_WORDS = reprlib.Repr()  # a sentence holds no list of ten thousand
_LAST_WORDS.maxother = _LAST_WORDS.maxstring = 60


def _sentence(detail: ErrorDetails) -> str:
    # The names of union members are pydantic's, not the user's: keep what the user wrote.
    key = ".".join(
        str(part) for part in detail["loc"] if not isinstance(part, str) or _is_key(part)
    ).removesuffix(".float")
    message = detail["msg"].removeprefix("Value error, ")
    message = _PLAIN_WORDS.get(detail["type"], message[:1].lower() + message[1:])
    got = (
        ""
        if detail["type"] in ("missing", "value_error")
        else f", got {_LAST_WORDS.repr(detail['input'])}"
    )
    return f"{key}: {message}{got}" if key else f"{message}{got}"


def _is_key(part: str) -> bool:
    """Whether the user wrote it, unlike `Range` or `function-after[_ordered(), Range]`."""
    return part.isidentifier() and not part[:1].isupper()


def _fields_at(model: type[BaseModel], parents: list[str]) -> list[str]:
    """The keys valid below the path `parents`, through optional, tuple and union annotations."""
    for parent in parents:
        found = (
            _nested_model(model.model_fields[parent].annotation)
            if parent in (model.model_fields)
            else None
        )
        model = found or model
    return list(model.model_fields)


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if hasattr(annotation, "model_fields"):
        return annotation
    return next(filter(None, map(_nested_model, get_args(annotation))), None)
