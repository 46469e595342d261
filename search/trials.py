"""Trials of a run through Ray Tune, with everything that happens written to the ledger.

Tune is handed one sitting at a time: what the ledger says is left to do. Its own state is scratch.
"""

import logging
import math
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.cluster import concurrent_trials
from search.config import ClusterConfig
from search.data_parallel import JointTrial, WorkersLostError
from search.ledger import LOST, Ledger, Trial, outcome
from search.results import FAILED, STOPPED
from search.storage import StorageError, Store
from search.telemetry import Telemetry
from search.trainable import ProbeTrial, Shared
from spaces.policy import policy_from_json
from trainers.student import FIGURES

# The ledger has what failed, and nothing reads Tune's snapshots: no traceback where a disk is full.
for _name in ("tune", "execution.experiment_state"):
    logging.getLogger(f"ray.tune.{_name}").setLevel(logging.CRITICAL)

RETRIES = 3  # of a trial whose worker was lost, in one sitting
# What Ray says of a worker that is gone; the last, before it has missed the node.
SIGNS_OF_LOSS = (
    "ActorDiedError",
    "The actor died",
    WorkersLostError.__name__,
    "The task may or may not have been executed on the actor",
)


class Interrupted(KeyboardInterrupt):
    """The search was asked to stop, and has stopped where it can go on."""


class Sitting:
    """What Tune's hooks have in common while some trials run."""

    def __init__(
        self,
        ledger: Ledger,
        epochs: int,
        objective: str,
        ended: Callable[[Trial], None],
    ) -> None:
        self.ledger, self.epochs, self.objective = ledger, epochs, objective
        self._ended = ended
        self.left: deque[Trial] = deque()  # to be begun, or begun again
        self._losses: Counter[str] = Counter()  # of workers, by the id of the trial
        self.stopping = False
        self.broken: OSError | None = None  # something of the run could not be written

    def told(self, result: dict[str, Any], trial: Trial) -> None:
        """An epoch of `trial` is done."""
        figures = {
            name: result[name] for name in FIGURES if math.isfinite(result.get(name, math.nan))
        }
        if "epoch" in figures:
            told = {
                "seconds": max(result["time_this_iter_s"], 0.0),  # of a clock that can be set
                "node": result.get("node", result["hostname"]),
                "device": result["device"],
                "batch_size": result["batch_size"],
            }
            with self._noticing():
                self.ledger.epoch(trial, figures, **told)

    def over(self, trial: Trial, result: dict[str, Any], error: str | None = None) -> None:
        """`trial` is over, unless it is to be gone on with in another sitting."""
        failure = error or result.get("failure")
        if not failure and trial.epochs and self.objective not in trial.figures:
            failure = f"{self.objective} was not a finite number"
        status = FAILED if failure else outcome(trial, self.epochs)
        if trial.status is not None or (self.stopping and status == STOPPED):
            return
        with self._noticing():
            test_accuracy = result.get("test_accuracy")
            self.ledger.ended(trial, status, failure, test_accuracy=test_accuracy)
            self._ended(trial)

    def again(self, trial: Trial) -> None:
        """Tune begins `trial` again, whose worker was lost in the middle of an epoch."""
        with self._noticing():
            self.ledger.began(trial)

    def lost(self, trial: Trial) -> bool:
        """The worker of `trial` was lost before Tune would try again; says whether we do."""
        self._losses[trial.id] += 1  # not its attempts, which a user's resuming counts, too
        again = self._losses[trial.id] <= RETRIES
        if again:
            self.left.append(trial)
        return again

    def unwritable(self, reason: str) -> None:
        """A worker could not write or read its checkpoint, which is no fault of its trial: that is
        left unfinished, and the sitting ends."""
        self.broken = self.broken or OSError(reason.partition(f"{StorageError.__name__}: ")[2])
        self.stopping = True

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        # Tune would take what a hook raises for a fault of the trial.
        try:
            yield
        except OSError as error:
            self.broken = self.broken or error
            self.stopping = True


def run_trials(
    shared: Shared,
    *,
    cluster: ClusterConfig,
    sitting: Sitting,
    unfinished: Iterable[Trial],
    propose: Callable[[], Trial | None],
    folder: Path,
    students: Path | Store | None = None,
    scheduler: TrialScheduler | None = None,
    loggers: Sequence[tune.Callback] = (),
) -> None:
    """Runs the `unfinished` trials and then those that `propose` gives, until it gives none.

    Students that end are kept in `students`. Tune's own results go to `folder`, and `loggers` hear
    of everything once the ledger has it. Raises Interrupted where a signal asked to stop, and
    OSError where the ledger could not be written.
    """
    sitting.left.extend(unfinished)
    kind = ProbeTrial if shared.workers == 1 else JointTrial
    # Every trial asks for the same resources: Tune caches actors per request.
    resources = {"cpus": cluster.cpus_per_trial, "gpus": cluster.gpus_per_trial}
    trainable = tune.with_parameters(kind, shared=shared, epochs=sitting.epochs, students=students)
    trainable.__qualname__ = kind.__name__  # the dashboard would call it after Tune's closure
    telemetry = Telemetry(sitting.ledger, sitting.ledger.stage[0], sitting.objective, shared.run)
    with gently(sitting):
        while True:
            tune.run(
                trainable,
                name=folder.name,
                storage_path=str(folder.parent),
                config=resources,
                num_samples=-1,
                search_alg=_Proposer(sitting, propose),
                scheduler=scheduler or FIFOScheduler(),
                stop=_Stopper(sitting),
                callbacks=[JsonLoggerCallback(), _Scribe(sitting), telemetry, *loggers],
                max_concurrent_trials=max(concurrent_trials(cluster) // shared.workers, 1),
                max_failures=RETRIES,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                reuse_actors=True,
                trial_name_creator=_title,
                trial_dirname_creator=_trial_name,
                raise_on_failed_trial=False,
                verbose=0,
            )
            # A trial that was lost after Tune had been told that there are no more is left.
            if sitting.stopping or not sitting.left:
                break
    if sitting.broken is not None:
        raise sitting.broken
    if sitting.stopping:
        raise Interrupted


@contextmanager
def gently(sitting: Sitting) -> Iterator[None]:
    """Ctrl-C or SIGTERM once lets running epochs end and starts nothing new; twice is at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if sitting.stopping:
            raise KeyboardInterrupt
        sitting.stopping = True

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


class _Proposer(Searcher):
    """What Tune asks for the next trial. Each is in the ledger before Tune knows it."""

    def __init__(self, sitting: Sitting, propose: Callable[[], Trial | None]) -> None:
        super().__init__()
        self._sitting, self._propose = sitting, propose

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        if self._sitting.stopping:
            return str(Searcher.FINISHED)
        left = self._sitting.left
        trial = left.popleft() if left else self._propose()
        if trial is None:
            return str(Searcher.FINISHED)  # None would make Tune ask for ever
        self._sitting.ledger.began(trial)
        return {"trial": trial.id, "policy": trial.policy.model_dump_json(), "seed": trial.seed}

    # What has happened reaches the ledger through the callback, which hears of every epoch.
    def on_trial_complete(self, trial_id: str, *_: Any, **__: Any) -> None: ...
    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


class _Scribe(tune.Callback):
    """Hears of every epoch and every end."""

    def __init__(self, sitting: Sitting) -> None:
        self._sitting = sitting

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._sitting.told(result, self._known(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._sitting.over(self._known(trial), trial.last_result or {})

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._sitting.again(self._known(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        known, reason = self._known(trial), _reason(trial)
        if f"{StorageError.__name__}: " in reason:
            self._sitting.unwritable(reason)
            return
        # Tune gives up at once where a worker is lost between two trials.
        early = trial.num_failures <= RETRIES and reason.startswith(LOST)
        if not (early and self._sitting.lost(known)):
            self._sitting.over(known, {}, reason)

    def _known(self, trial: Any) -> Trial:
        return self._sitting.ledger.trials[trial.config["trial"]]


class _Stopper(tune.Stopper):
    """Stops trials after the epoch that they are in, once the sitting is to end."""

    def __init__(self, sitting: Sitting) -> None:
        self._sitting = sitting

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._sitting.stopping

    def stop_all(self) -> bool:
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps what is of no use to a search that is resumed from its ledger


def _reason(trial: Any) -> str:
    """The last line of what made Tune give a trial up."""
    told = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
    if not told or any(sign in told for sign in SIGNS_OF_LOSS):
        return f"{LOST} {max(trial.num_failures, 1)} times"
    return told.strip().splitlines()[-1]


def _trial_name(trial: Any) -> str:
    """The name of a trial's folder."""
    return str(trial.config["trial"])


def _title(trial: Any) -> str:
    """What Tune calls a trial in its messages."""
    return f"{trial.config['trial']} {policy_from_json(trial.config['policy'])}"
