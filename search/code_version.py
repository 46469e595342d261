"""Which code this is."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def code_version() -> str:
    """`0.1.0+4f1d...`: Augury's version, and a hash of its source, which edits change."""
    here = Path(__file__).parent.parent
    digest = hashlib.blake2b(digest_size=8)
    for room in ("search", "spaces", "trainers"):
        for path in sorted((here / room).rglob("*.py")):
            digest.update(path.relative_to(here).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return f"{version('augury')}+{digest.hexdigest()}"
