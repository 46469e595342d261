"""Who explores, and where: the search on Ray Tune and Optuna, its files and its command line.

    from search import load_run, run_search

Both are imported on first use, so that `augury --help` does not wait for torch and Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.config import SearchConfig, load_config
    from search.load import Run, load_run
    from search.run import resume_search, run_search
    from search.run_folder import RunFolder

__all__ = [
    "Run",
    "RunFolder",
    "SearchConfig",
    "load_config",
    "load_run",
    "resume_search",
    "run_search",
]

_HOME = {
    "Run": "search.load",
    "RunFolder": "search.run_folder",
    "SearchConfig": "search.config",
    "load_config": "search.config",
    "load_run": "search.load",
    "resume_search": "search.run",
    "run_search": "search.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'search' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
