"""Where else trials are told while they run: TensorBoard's files, MLflow, Weights & Biases.

The ledger is the truth, these are for looking on. So none of them may cost a trial: one that cannot
be told any more is told nothing from then on, which is noted once. MLflow and Weights & Biases are
told by Ray's own callbacks.
"""

import math
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from ray import tune
from ray.tune.logger import LoggerCallback

from search.config import LoggingConfig
from search.event_files import EventFiles
from search.ledger import Ledger, Trial
from search.results import FAILED, FINISHED, STOPPED
from search.run_folder import RunFolder
from spaces.errors import UserError

Callback = tune.Callback
# MLflow's own defaults wait for minutes, refuse its file store, and tell its makers of its use.
MLFLOW = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
WANDB_SECONDS = 60  # for what is still to be sent when a stage ends


def require_trackers(config: LoggingConfig, folder: RunFolder) -> None:
    """Raises UserError where a tracker is not installed, does not answer, or wants a key."""
    for key, make in _trackers(config, folder):
        if find_spec(key) is None:
            raise UserError(f"logging.{key} needs the package {key}: pip install 'augury[{key}]'")
        try:
            make().setup()
        except Exception as error:  # whatever these packages raise
            raise UserError(f"logging.{key}: {_sentence(error)}") from None


def loggers_for(
    config: LoggingConfig, ledger: Ledger, folder: RunFolder, note: Callable[[str], None]
) -> list[Callback]:
    """Callbacks for the trials of a run, which have to hear of everything after whoever writes the
    `ledger`; `note` is told which of them are told no more."""
    loggers: list[Callback] = []
    if config.tensorboard:
        files = EventFiles(folder.tensorboard, ledger, folder.publish)
        loggers.append(_TensorBoard(ledger, note, files))
    for key, make in _trackers(config, folder):
        loggers.append(_Tracker(ledger, note, key, make()))
    return loggers


def _trackers(
    config: LoggingConfig, folder: RunFolder
) -> Iterator[tuple[str, Callable[[], LoggerCallback]]]:
    """Ray's own, by their keys in the config; a trial's run is below the name of the folder."""

    def mlflow() -> LoggerCallback:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        for variable, value in MLFLOW.items():
            os.environ.setdefault(variable, value)
        return MLflowLoggerCallback(
            config.mlflow, experiment_name=folder.name, tags={"augury.run": str(folder)}
        )

    def wandb() -> LoggerCallback:
        from ray.air.integrations.wandb import WandbLoggerCallback

        return WandbLoggerCallback(config.wandb, group=folder.name, upload_timeout=WANDB_SECONDS)

    if config.mlflow is not None:
        yield "mlflow", mlflow
    if config.wandb is not None:
        yield "wandb", wandb


def _sentence(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"


class _Logger(LoggerCallback):
    """Hears of trials as Tune has them, and tells of them as the ledger has them."""

    def __init__(self, ledger: Ledger, note: Callable[[str], None], name: str) -> None:
        self._ledger, self._note, self._name = ledger, note, name
        self._given_up = False

    def known(self, trial: Any) -> Trial:
        return self._ledger.trials[trial.config["trial"]]

    def trying(self, tell: Callable[..., None], *what: Any) -> None:
        # Tune would take what is raised here for a fault of the trial.
        if self._given_up:
            return
        try:
            tell(*what)
        except Exception as error:
            self._given_up = True
            self._note(f"{self._name} is told no more in this sitting: {_sentence(error)}")


class _TensorBoard(_Logger):
    def __init__(self, ledger: Ledger, note: Callable[[str], None], files: EventFiles) -> None:
        super().__init__(ledger, note, "tensorboard")
        self._files = files

    def log_trial_start(self, trial: Any) -> None:
        self.trying(self._files.began, self.known(trial))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        if _is_epoch(result):
            self.trying(self._files.epoch, self.known(trial))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.trying(self._files.ended, self.known(trial))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.trying(self._files.close)


class _Tracker(_Logger):
    """Has one of Ray's callbacks tell of trials by their policies."""

    def __init__(
        self, ledger: Ledger, note: Callable[[str], None], name: str, tracker: LoggerCallback
    ) -> None:
        super().__init__(ledger, note, name)
        self._tracker = tracker
        self._shown: dict[str, _Shown] = {}  # by Tune's own ids

    def setup(self, *_: Any, **__: Any) -> None:
        self.trying(self._tracker.setup)

    def log_trial_start(self, trial: Any) -> None:
        self._show(trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        if _is_epoch(result):
            tested = result.get("test_accuracy")
            more = {} if tested is None else {"test_accuracy": tested}
            self._tell(trial, self.known(trial).figures | more)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        known = self.known(trial)
        if known.status == FAILED:  # Weights & Biases has no other word for it
            self._tell(trial, {"failed": 1.0})
        # One that is to be gone on with is not finished either.
        failed = known.status not in (FINISHED, STOPPED)
        self.trying(self._tracker.log_trial_end, self._show(trial), failed)
        del self._shown[trial.trial_id]

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.trying(self._tracker.on_experiment_end, trials)

    def _tell(self, trial: Any, figures: dict[str, float]) -> None:
        epoch = max(self.known(trial).epochs, default=0)
        result = {"training_iteration": epoch, **figures}
        self.trying(self._tracker.log_trial_result, epoch, self._show(trial), result)

    def _show(self, trial: Any) -> "_Shown":
        """Also where the first that is heard of a trial is its end: its worker was lost early."""
        shown = self._shown.get(trial.trial_id)
        if shown is None:
            shown = self._shown[trial.trial_id] = _Shown(trial, self.known(trial))
            self.trying(self._tracker.log_trial_start, shown)
        return shown


class _Shown:
    """A trial of Tune's as trackers show it: its parameters are words and numbers."""

    def __init__(self, trial: Any, known: Trial) -> None:
        self._trial = trial
        self.config = {
            "trial": known.id,
            "stage": known.stage,
            "policy": str(known.policy),
            "seed": known.seed,
            **known.params,
        }

    def __str__(self) -> str:
        return f"{self.config['policy']}, {self.config['trial']}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)


def _is_epoch(result: dict[str, Any]) -> bool:
    """Whether it tells an epoch, and not a failure."""
    return math.isfinite(result.get("epoch", math.nan))
