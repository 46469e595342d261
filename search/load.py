"""A run as an object, for notebooks and scripts."""

from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from search import evidence
from search.run_folder import RunFolder
from search.standing import Standing, standing
from search.table import read_parquet
from spaces.errors import UserError
from spaces.policy import Policy, load_policy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a run in a notebook.
SHOWN = 10
COLUMNS = (
    *("rank", "policy", "status", "objective", "validation_accuracy"),
    *("full_validation_accuracy_mean", "full_test_accuracy_mean"),
)


class Run:
    """What a search has found, read from its folder; also while it runs, as of each first use.

    Figures are matplotlib's own, without pyplot: a notebook shows them after `%matplotlib inline`.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @cached_property
    def policies(self) -> pd.DataFrame:
        """The ranked table, best first (docs/policies-parquet.md has its columns); raises UserError
        where no probe has ended yet."""
        return read_parquet(self.folder.policies).to_pandas()

    @cached_property
    def standing(self) -> Standing:
        """How far the run is: its trials, its best probe, the time that is left."""
        return standing(self.folder)

    @cached_property
    def verdict(self) -> dict[str, Any]:
        """What promotion found; raises UserError where it has not come to that."""
        found = self.folder.read_verdict()
        if found is None:
            raise UserError(f"{self.folder}: has no verdict yet")
        return found

    @cached_property
    def best_policy(self) -> Policy:
        """The policy that validation chose; raises UserError where it has not come to that."""
        if not self.folder.best_policy.exists():
            raise UserError(f"{self.folder}: has no best policy yet")
        return load_policy(self.folder.best_policy)

    def plot_history(self) -> "Figure":
        """The objective of every probe, and the best so far; raises UserError before the first
        probe has ended."""
        plot = evidence.history(self.standing)
        if plot is None:
            raise UserError(f"{self.folder}: no probe has ended yet")
        return plot.figure()

    def plot_agreement(self) -> "list[Figure]":
        """The objective of probes against accuracies, as far as there are policies with both."""
        plots, _ = evidence.agreements(self.standing, self.standing.rows())
        return [plot.figure() for plot in plots]

    def plot_importance(self) -> "list[Figure]":
        """What of the policies mattered for the objective; empty where that cannot be told yet."""
        return [plot.figure() for plot in evidence.matters(self.standing)]

    def plot_front(self) -> "list[Figure]":
        """The fronts of several objectives, two at a time; empty where there is one objective."""
        plots = evidence.fronts(self.standing, self.standing.rows())
        return [plot.figure() for plot in plots]

    def plot_curves(self) -> "Figure":
        """The epochs of the students of full length; raises UserError where there are none yet."""
        plot = evidence.curves(self.standing)
        if plot is None:
            raise UserError(f"{self.folder}: has no students of full length yet")
        return plot.figure()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """In a notebook: the verdict, as far as there is one, and the beginning of the table."""
        found = self.folder.read_verdict()
        said = escape(found["sentence"] if found else "No verdict yet.")
        if not self.folder.policies.exists():
            return f"<p>{said}</p>"
        shown = self.policies.head(SHOWN)[list(COLUMNS)]
        return f"<p>{said}</p>{shown.to_html(index=False, na_rep='', float_format='{:.4g}'.format)}"


def load_run(path: Path | str) -> Run:
    """The run in the folder or at the address `path`; raises UserError where there is none."""
    folder = RunFolder.open(path)
    folder.refresh()
    return Run(folder)
