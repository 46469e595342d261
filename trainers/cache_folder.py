"""Where teachers, decoded images and downloads are kept between runs."""

import os
from pathlib import Path

from spaces.errors import UserError


def cache_folder() -> Path:
    """$AUGURY_CACHE, else `augury` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("AUGURY_CACHE") or Path(base) / "augury")


def made_folder(name: str, what: str) -> Path:
    """The folder `name` of the cache, made where it is not there; `what` is kept in it. Raises
    UserError where it cannot be made."""
    path = cache_folder() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: {what} cannot be kept here: {error.strerror}; set AUGURY_CACHE"
        ) from None
    return path
