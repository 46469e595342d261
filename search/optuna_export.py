"""A run as a study of Optuna, for its dashboard, plots and importances.

It is made of the run's files alone and never read back: the ledger stays the one truth. Trials have
the parameters, distributions, values and states that they have in the search's own study; what was
known of earlier runs, and proposals that repeated themselves, are not among them.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from search.config import SearchConfig, load_config
from search.ledger import Ledger, Trial, read
from search.proposals import DIRECTIONS, FLAT
from search.results import FINISHED, STOPPED
from search.run_folder import RunFolder
from search.standing import look_at, until
from search.warm_start import WarmStart
from spaces import PolicySpace
from spaces.atomic_write import atomic_write
from spaces.description import describe
from spaces.errors import UserError
from spaces.flat import FlatSpace

SQLITE = (".db", ".sqlite", ".sqlite3")


@dataclass
class _Told:
    """What a storage knows of one of our trials."""

    id: int  # of Optuna's trial
    epochs: int  # whose values were told
    over: bool


class Mirror:
    """The probes of the run in `folder` as a study in `storage`, named after the folder."""

    def __init__(self, folder: RunFolder, config: SearchConfig, storage: BaseStorage) -> None:
        self._objectives, self._storage = config.search.directions, storage
        start = WarmStart.from_json(folder.read_marker()["warm_start"])
        space = PolicySpace(config.search.space, base=config.data.base)
        space = space.including([*start.first, *(policy for policy, _ in start.known)])
        self._space = FlatSpace(space) if config.search.searcher in FLAT else space
        self._told: dict[str, _Told] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name=folder.name,
            storage=storage,
            directions=[DIRECTIONS[mode] for mode in self._objectives.values()],
        )
        self._study = storage.get_study_id_from_name(study.study_name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(self._objectives))

    def update(self, ledger: Ledger) -> None:
        """Tells the storage what `ledger` has and it does not."""
        for trial in ledger.of("probe"):
            told = self._told.get(trial.id)
            if told is None or (told.over and trial.status is None):  # begun, or begun once more
                self._add(trial)
            elif not told.over:
                self._go_on(trial, told)

    def _add(self, trial: Trial) -> None:
        values = self._values(trial)
        number = self._storage.create_new_trial(self._study, self._frozen(trial))
        self._told[trial.id] = _Told(number, len(values), trial.status is not None)

    def _go_on(self, trial: Trial, told: _Told) -> None:
        values = list(self._values(trial).items())
        for epoch, value in values[told.epochs :]:
            self._storage.set_trial_intermediate_value(told.id, epoch, value)
        told.epochs = len(values)
        if trial.status is None:
            return
        for name, value in _attributes(trial).items():
            self._storage.set_trial_user_attr(told.id, name, value)
        frozen = self._frozen(trial)
        self._storage.set_trial_state_values(told.id, frozen.state, frozen.values)
        told.over = True

    def _frozen(self, trial: Trial) -> FrozenTrial:
        fixed = FixedTrial(dict(trial.params))
        self._space.suggest(fixed)
        distributions: dict[str, BaseDistribution] = fixed.distributions
        state, values = self._outcome(trial)
        frozen = create_trial(
            state=state,
            values=values,
            params={name: trial.params[name] for name in distributions},
            distributions=distributions,
            user_attrs=_attributes(trial),
            intermediate_values=self._values(trial),
        )
        frozen.datetime_start = _moment(trial.began_at)
        frozen.datetime_complete = _moment(trial.ended_at)
        return frozen

    def _outcome(self, trial: Trial) -> tuple[TrialState, list[float] | None]:
        """As the search told its own study."""
        values = [trial.figures.get(name, math.nan) for name in self._objectives]
        if trial.status is None:
            return TrialState.RUNNING, None
        if trial.status not in (FINISHED, STOPPED) or not all(map(math.isfinite, values)):
            return TrialState.FAIL, None
        return (TrialState.COMPLETE if trial.status == FINISHED else TrialState.PRUNED), values

    def _values(self, trial: Trial) -> dict[int, float]:
        """By epoch; Optuna has none of several objectives."""
        first, *others = self._objectives
        return {} if others else trial.values(first)


def _attributes(trial: Trial) -> dict[str, Any]:
    told = {
        "trial": trial.id,
        "policy": str(trial.policy),
        "in words": "\n".join(describe(trial.policy)[1:]),
        "seed": trial.seed,
        "failure": trial.failure,
        **trial.places,
        **trial.figures,
    }
    return {name: value for name, value in told.items() if value is not None}


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds) if math.isfinite(seconds) else None


def export_study(folder: RunFolder, to: Path) -> int:
    """Writes the study into the file `to`, whole or not at all; returns how many trials it has.

    An ending of SQLITE makes it a database, every other one a journal. Raises UserError where it
    cannot be written, or the run not be read.
    """
    _require_elsewhere(folder, to)
    config, ledger = load_config(folder.config), read(folder.ledger)
    with (
        _writing(to),
        atomic_write(to) as temporary,
        _opened(temporary, sqlite=to.suffix in SQLITE) as storage,
    ):
        Mirror(folder, config, storage).update(ledger)
    return len(ledger.of("probe"))


def _require_elsewhere(folder: RunFolder, to: Path) -> None:
    """A journal that is called trials.jsonl would take the place of the ledger."""
    if to.resolve().is_relative_to(folder.path.resolve()):
        raise UserError(f"{to}: lies in the run: write the study elsewhere")


def follow_study(folder: RunFolder, to: Path) -> None:
    """Writes the study into `to` anew and keeps it up to date, while whoever wants reads it, until
    the search is done or nobody works on it. Raises what `export_study` raises."""
    _require_elsewhere(folder, to)
    with _writing(to):
        to.unlink(missing_ok=True)
        with _opened(to, sqlite=to.suffix in SQLITE) as storage:
            keep_up(Mirror(folder, load_config(folder.config), storage), folder)


def keep_up(study: Mirror, folder: RunFolder) -> None:
    """Keeps `study` up to date until the search is done or nobody works on it."""
    for now in until(lambda now: now.over, look_at(folder)):
        study.update(now.ledger)


@contextmanager
def _opened(path: Path, *, sqlite: bool) -> Iterator[BaseStorage]:
    if not sqlite:
        yield JournalStorage(JournalFileBackend(str(path)))
        return
    if "?" in str(path):
        raise UserError(f"{path}: the path of a database holds no question mark")
    storage = RDBStorage(f"sqlite:///{path}")
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def _writing(to: Path) -> Iterator[None]:
    if not to.parent.is_dir():
        raise UserError(f"{to}: there is no folder {to.parent}")
    try:
        yield
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror}") from None
    except optuna.exceptions.StorageInternalError:
        raise UserError(f"{to}: cannot be written, the disk may be full") from None
