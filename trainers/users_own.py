"""What a config names as `package.module:attribute`: code of the user's own."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from spaces.errors import UserError, by_nearness

_Class = TypeVar("_Class")


def users_own(kind: str, name: str) -> Any:
    """What `name` leads to. Raises UserError, which calls it a `kind`, where there is no such
    module or nothing of that name in it."""
    module, attribute = users_module(kind, name), name.partition(":")[2]
    found = getattr(module, attribute, None)
    if found is None:
        names = [n for n in vars(module) if not n.startswith("_")] or [attribute]
        nearest = ", ".join(by_nearness(attribute, names)[:3])
        raise UserError(
            f"{kind} {name!r} cannot be imported: {module.__name__} has no {attribute!r}, "
            f"nearest: {nearest}"
        )
    return found


def users_class(kind: str, name: str, base: type[_Class]) -> type[_Class]:
    """The class at `name`; raises UserError also where it is none of `base`, and where its module
    cannot be imported for want of something else."""
    try:
        found = users_own(kind, name)
    except (ImportError, ValueError) as error:
        raise UserError(f"{kind} {name!r} cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{kind} {name!r} is not a {base.__name__}")
    return found


def users_module(kind: str, name: str) -> ModuleType:
    """The module of `name`, also one that lies in the current folder, after all others."""
    module = name.partition(":")[0]
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # a package that their module needs: the traceback says where
        raise UserError(
            f"{kind} {name!r} cannot be imported: there is no module {error.name!r} on the Python "
            f"path or in {folder}"
        ) from None
