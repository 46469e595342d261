"""The search: Optuna proposes policies, Ray Tune probes them."""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from search.cluster import concurrent_trials
from search.config import ExploreConfig, SearchConfig
from search.results import FAILED, FINISHED, STOPPED, Row
from search.trainable import ProbeTrial, Shared
from spaces import Policy, PolicySpace
from spaces.policy import policy_from_json
from trainers.student import FIGURES

REPEATED_PROPOSALS = 30  # of the sampler's, and ten times as many random ones
TrialEnded = Callable[[Row], None]
_NOT_PARAMS = {"policy", "seed", "cpus", "gpus"}


class PolicySearch(OptunaSearch):
    """Optuna's TPE over policies, with what stock OptunaSearch tells a study set right.

    A trial stopped before its last epoch is told as pruned, not as complete; one without a finite
    value as failed, instead of running for ever; and a policy that was proposed before is not
    proposed again.
    """

    def __init__(
        self, config: ExploreConfig, space: PolicySpace, first: Sequence[Policy], epochs: int
    ) -> None:
        self._epochs = epochs
        self._proposed: set[str] = set()  # identities of policies
        self._samplers = _tpe(config), optuna.samplers.RandomSampler(seed=config.seed)
        super().__init__(
            space=space,
            metric=config.objective,
            mode=config.mode,
            points_to_evaluate=[space.params(policy) for policy in first],
            sampler=self._samplers[0],
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        sampler, random = self._samplers
        attempts = [sampler] * REPEATED_PROPOSALS + [random] * (10 * REPEATED_PROPOSALS)
        for self._study.sampler in attempts:
            config = super().suggest(trial_id)
            assert config is not None
            identity = policy_from_json(config["policy"]).identity
            if identity not in self._proposed:
                self._proposed.add(identity)
                return config
            # Failed trials are not learned from: telling the twin's value again would draw the
            # sampler to where it has been.
            self._study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        return str(Searcher.FINISHED)  # None would make Tune ask for ever

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        value = result.get(self.metric, math.nan)
        if math.isfinite(value):
            self._ot_trials[trial_id].report(value, result["training_iteration"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self._completed_trials:
            return
        self._completed_trials.add(trial_id)
        trial, result = self._ot_trials[trial_id], result or {}
        value, step = result.get(self.metric, math.nan), result.get("training_iteration", 0)
        usable = not error and math.isfinite(value)
        if usable and step not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, step)
        if not usable:
            self._study.tell(trial, state=TrialState.FAIL)
        elif step >= self._epochs:
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)  # with its last reported value

    @property
    def _study(self) -> optuna.Study:
        study: Any = self._ot_study  # None only until the constructor is done
        return study


def _tpe(config: ExploreConfig) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        # Grouping is marked experimental; a conditional space needs it to be sampled jointly.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=config.seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=config.random_trials,
        )


def scheduler(config: ExploreConfig) -> TrialScheduler:
    """What stops probes early. ASHA's effect on the ranking is in experiments.md."""
    if config.scheduler == "none":
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        max_t=config.probe_epochs,
        grace_period=min(config.asha.grace_period, config.probe_epochs),
        reduction_factor=config.asha.reduction_factor,
    )


def explore(
    config: SearchConfig,
    shared: Shared,
    space: PolicySpace,
    first: Sequence[Policy],
    *,
    folder: Path,
    trial_ended: TrialEnded,
) -> list[Row]:
    """Probes `config.search.trials` policies, those of `first` before others; a row for each, in
    no order.

    Tune's own results go to `folder`.
    """
    search, epochs = config.search, config.search.probe_epochs
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    grid: Any = tuner(
        config,
        tune.with_parameters(ProbeTrial, shared=shared, epochs=epochs),
        folder=folder,
        trial_ended=trial_ended,
        epochs=epochs,
        param_space={"seed": search.seed},
        tune_config={
            "search_alg": PolicySearch(search, space, first, epochs),
            "scheduler": scheduler(search),
            "num_samples": search.trials,
            "metric": search.objective,
            "mode": search.mode,
        },
    ).fit()
    return [row_of_result(result, epochs) for result in grid]


def tuner(
    config: SearchConfig,
    trainable: Any,
    *,
    folder: Path,
    trial_ended: TrialEnded,
    epochs: int,
    param_space: dict[str, Any],
    tune_config: dict[str, Any],
) -> tune.Tuner:
    """A Tuner with what probing and promotion have in common."""
    cluster = config.cluster
    # Every trial asks for the same resources: Tune caches actors per request.
    resources = {"cpus": cluster.cpus_per_trial, "gpus": cluster.gpus_per_trial}
    return tune.Tuner(
        trainable,
        param_space=param_space | resources,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrent_trials(cluster),
            reuse_actors=True,
            trial_dirname_creator=trial_id,
            **tune_config,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            verbose=0,
            callbacks=[JsonLoggerCallback(), Announcer(trial_ended, epochs)],
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def trial_id(trial: Any) -> str:
    """The name of a trial's folder."""
    return str(trial.trial_id)


class Announcer(tune.Callback):
    """Passes on the row of every trial that ends."""

    def __init__(self, trial_ended: TrialEnded, epochs: int) -> None:
        self._trial_ended: TrialEnded | None = trial_ended
        self._epochs = epochs

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles callbacks with the run; what writes to a terminal stays in this process.
        return self.__dict__ | {"_trial_ended": None}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._announce(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._announce(trial, "the worker was lost or raised")

    def _announce(self, trial: Any, error: str | None) -> None:
        if self._trial_ended is not None:
            self._trial_ended(
                row_of(trial.trial_id, trial.config, trial.last_result, error, self._epochs)
            )


def row_of_result(result: tune.Result, epochs: int) -> Row:
    """The row of one of Tune's results."""
    error = f"{type(result.error).__name__}: {result.error}" if result.error else None
    return row_of(Path(result.path).name, result.config or {}, result.metrics, error, epochs)


def row_of(
    trial: str,
    config: dict[str, Any],
    metrics: dict[str, Any] | None,
    error: str | None,
    epochs: int,
) -> Row:
    """The row of a trial that ended with `metrics`, or with `error`."""
    metrics = metrics or {}
    failure = error or metrics.get("failure")
    finished = metrics.get("training_iteration", 0) >= epochs
    return Row(
        trial_id=trial,
        status=FAILED if failure else FINISHED if finished else STOPPED,
        policy=policy_from_json(config["policy"]),
        params={k: v for k, v in config.items() if k not in _NOT_PARAMS},
        figures={name: metrics[name] for name in FIGURES if name in metrics},
        seconds=float(metrics.get("time_total_s", math.nan)),
        failure=failure,
    )
