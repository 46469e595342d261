"""What a user is told: one sentence that says what was wrong, where, and what would be right."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo
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
        *parents, name = detail["loc"]
        keys, inner, _ = _walked(model, parents)
        scope = ".".join(key for key in keys if isinstance(key, str))
        kind = f"key under {scope}" if scope else "key"
        return unknown_name(kind, str(name), inner.model_fields, where)
    keys, _, members = _walked(model, detail["loc"])
    if detail["type"] == "union_tag_invalid":
        key = ".".join([*map(str, keys), detail["ctx"]["discriminator"].strip("'")])
        return unknown_name(key, detail["ctx"]["tag"], members, where)
    return UserError(f"{where}: {_sentence(detail, keys)}")


# What YAML and JSON call what pydantic has Python's words for.
_PLAIN_WORDS = {
    "model_type": "should be a mapping of keys to values",
    "model_attributes_type": "should be a mapping of keys to values",
    "dict_type": "should be a mapping of keys to values",
    "tuple_type": "should be a list",
}
_LAST_WORDS = reprlib.Repr()  # a sentence holds no list of ten thousand
_LAST_WORDS.maxother = _LAST_WORDS.maxstring = 60


def _sentence(detail: ErrorDetails, keys: list[str | int]) -> str:
    key = ".".join(map(str, keys)).removesuffix(".float").removesuffix(".int")
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


def _walked(
    model: type[BaseModel], loc: Iterable[str | int]
) -> tuple[list[str | int], type[BaseModel], dict[Any, type[BaseModel]]]:
    """What the user wrote of the place `loc`, the model there, and the kinds that it can be of.

    The names of union members are pydantic's, not the user's; where a key tells the members apart,
    as `data.name` does, the one that was meant is the model.
    """
    keys: list[str | int] = []
    members: dict[Any, type[BaseModel]] = {}
    for part in loc:
        if part in members:
            model, members = members[part], {}
        elif isinstance(part, int):
            keys.append(part)
        elif _is_key(part):
            keys.append(part)
            field = model.model_fields.get(part)
            members = _told_apart(field) if field else {}
            model = (_nested_model(field.annotation) if field else None) or model
    return keys, model, members


def _told_apart(field: FieldInfo) -> dict[Any, type[BaseModel]]:
    """The members of a union of models by the value of the key that tells them apart."""
    key = field.discriminator
    if not isinstance(key, str):
        return {}
    return {member.model_fields[key].default: member for member in get_args(field.annotation)}


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if hasattr(annotation, "model_fields"):
        return annotation
    return next(filter(None, map(_nested_model, get_args(annotation))), None)
