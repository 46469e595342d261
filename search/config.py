"""A search as data: composed from the parts that the rooms own, read from YAML, strict."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from torch import nn

from spaces.errors import UserError, from_validation, unknown_name
from spaces.frozen import Frozen
from spaces.space import SpaceSpec
from trainers.datasets import DataConfig, DigitsConfig, ImageSplits
from trainers.models import Network, network_for
from trainers.quantization import QuantizationSpec
from trainers.student import OBJECTIVES, StudentRecipe
from trainers.teacher import TeacherRecipe

LEAST_SHARE = 1e-4  # of a CPU or GPU
AUTO = "auto"  # what is measured instead of being given


class StudentConfig(Frozen):
    """What is distilled and how; the same for probes and full-length runs but for the epochs."""

    network: Annotated[
        Network | None,
        Field(description="null: a copy of the teacher; else its own, fresh or from a file"),
    ] = None
    quantization: QuantizationSpec = QuantizationSpec()
    recipe: StudentRecipe = StudentRecipe()

    def start(self, splits: ImageSplits) -> nn.Module | None:
        """The network that is quantized, None where it is the teacher; raises UserError where it
        cannot be built for `splits`. Without weights of a file every seed has its own."""
        return None if self.network is None else network_for(self.network, splits, seed=0)


class StoppingConfig(Frozen):
    """When a scheduler stops probes: those whose objective lags behind at rungs of epochs (asha: Li
    et al., MLSys 2020, arXiv 1810.05934; hyperband: the same with several first rungs), or whose
    best is worse than the median of the others' means (median: Golovin et al., KDD 2017)."""

    grace_period: Annotated[int, Field(ge=1, description="epochs that no probe is denied")] = 1
    reduction_factor: Annotated[
        int, Field(ge=2, description="asha and hyperband: one in this many goes on")
    ] = 3


class BudgetConfig(Frozen):
    """What ends the probing beside the number of trials; running ones are finished."""

    hours: Annotated[float | None, Field(gt=0, description="of all sittings of the run")] = None
    gpu_hours: Annotated[float | None, Field(gt=0, description="that probes may take")] = None
    target: Annotated[
        float | None, Field(allow_inf_nan=False, description="value of the objective")
    ] = None


class ExploreConfig(Frozen):
    """How policies are proposed and probed."""

    trials: Annotated[int, Field(ge=1)] = 20
    probe_epochs: Annotated[int, Field(ge=1)] = 3
    objective: Annotated[
        str, Field(description="a figure of probes; auto: what augury validate recommended")
    ] = "score"
    further_objectives: Annotated[
        tuple[str, ...],
        Field(strict=False, description="beside it; then the best are the front of all of them"),
    ] = ()
    searcher: Literal["tpe", "gp", "cmaes", "qmc", "random", "nsga2"] = "tpe"
    space: SpaceSpec = SpaceSpec()
    warm_start: Annotated[
        tuple[str, ...],
        Field(
            strict=False,
            description="schemes, policy files and earlier runs, asked first, on data.base",
        ),
    ] = (
        "none",
        "trivial_augment",
        "rand_augment",
        "auto_augment_cifar10",
        "auto_augment_svhn",
        "cutmix",
        "mixup",
    )
    random_trials: Annotated[
        int,
        Field(
            ge=0,
            description="finished trials, warm start included, before tpe, gp or cmaes take over; "
            "the population of nsga2",
        ),
    ] = 10
    budget: BudgetConfig = BudgetConfig()
    max_failed_share: Annotated[
        float, Field(gt=0, le=1, description="of ended probes; beyond it, and 5, the search stops")
    ] = 0.5
    scheduler: Literal["none", "asha", "hyperband", "median"] = "none"
    stopping: StoppingConfig = StoppingConfig()
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    @field_validator("objective")
    @classmethod
    def _known_or_auto(cls, objective: str) -> str:
        return objective if objective == AUTO else cls._known(objective)

    @classmethod
    def _known(cls, objective: str) -> str:
        if objective not in OBJECTIVES:
            raise ValueError(str(unknown_name("objective", objective, (*OBJECTIVES, AUTO))))
        return objective

    @field_validator("further_objectives")
    @classmethod
    def _all_known(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(cls._known(objective) for objective in objectives)

    @model_validator(mode="after")
    def _several_objectives(self) -> "ExploreConfig":
        if not self.further_objectives:
            return self
        if self.objective == AUTO:
            raise ValueError("further_objectives: with objective auto there is one: name it")
        if len(self.directions) <= len(self.further_objectives):
            raise ValueError("further_objectives: every objective may be there once")
        if self.searcher == "cmaes" or self.scheduler != "none":
            raise ValueError(
                "further_objectives: cmaes and every scheduler know one objective, use another "
                "searcher (nsga2) and scheduler: none"
            )
        return self

    @property
    def directions(self) -> dict[str, Literal["min", "max"]]:
        """All objectives, the one that ranks first, and whether they are minimised."""
        names = (self.objective, *self.further_objectives)
        return {name: "min" if OBJECTIVES[name] == "min" else "max" for name in names}

    @property
    def mode(self) -> Literal["min", "max"]:
        return self.directions[self.objective]


class PromotionConfig(Frozen):
    """Which policies are trained to full length, for how long and how often."""

    top: Annotated[int, Field(ge=1, description="best policies, beside the controls")] = 3
    epochs: Annotated[int, Field(ge=1)] = 10
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    images: Annotated[
        Literal["student", "train"],
        Field(description="of the data that they learn from: those of the probes, or all"),
    ] = "student"
    workers: Annotated[
        int, Field(ge=1, le=1024, description="processes that train each student together")
    ] = 1

    @property
    def kind(self) -> str:
        """What tells its students from those of another length, in names of trials and files."""
        return kind_of(self.epochs, self.images, self.workers)


def kind_of(epochs: int, images: str, workers: int) -> str:
    """EPOCHS-IMAGES, and how many workers trained the student where there were several: of each,
    batch norm sees a part of the batch."""
    alone = f"{epochs}-{images}"
    return alone if workers == 1 else f"{alone}-{workers}workers"


class ClusterConfig(Frozen):
    """Where trials run: on this machine, or on the Ray cluster at `address`."""

    address: Annotated[str, Field(description="local, auto or HOST:PORT")] = "local"
    cpus_per_trial: Annotated[
        Annotated[float, Field(gt=0)] | Literal["auto"],
        Field(description="auto: what makes all together fastest, measured before the first probe"),
    ] = 1.0
    gpus_per_trial: Annotated[
        Annotated[float, Field(ge=0)] | Literal["auto"],
        Field(description="auto: the same; none where no node has one"),
    ] = 0.0
    concurrent_trials: Annotated[
        int | None, Field(ge=1, description="at most; null is as many as the resources hold")
    ] = None
    dashboard: Annotated[bool, Field(description="Ray's dashboard on a local cluster")] = True

    def of_workers(self, workers: int) -> "ClusterConfig":
        """What each of so many workers of one student asks for: of several, each has GPUs of its
        own, since no two can exchange gradients on one."""
        if workers == 1 or isinstance(self.gpus_per_trial, str):
            return self
        return self.model_copy(update={"gpus_per_trial": float(math.ceil(self.gpus_per_trial))})

    @field_validator("cpus_per_trial", "gpus_per_trial", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != AUTO and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"should be a number or {AUTO}, got {value!r}")
        if value != AUTO and 0 < value < LEAST_SHARE:
            raise ValueError(
                f"should be {LEAST_SHARE:g}, the least that Ray counts, or more, got {value!r}"
            )
        return value

    @property
    def resources(self) -> dict[str, float]:
        """What a trial asks Ray for, but for what is `auto` and so not known yet."""
        asked = {"CPU": self.cpus_per_trial, "GPU": self.gpus_per_trial}
        return {name: number for name, number in asked.items() if not isinstance(number, str)}


class LoggingConfig(Frozen):
    """Where else trials are told than in the ledger, while they run."""

    tensorboard: Annotated[bool, Field(description="event files in the run's folder")] = True
    mlflow: Annotated[
        str | None, Field(description="URI of a tracking server or sqlite:///FILE, or a folder")
    ] = None
    wandb: Annotated[str | None, Field(description="a project of Weights & Biases")] = None


class SearchConfig(Frozen):
    """Everything that a search depends on. The defaults are the embedded search on digits."""

    data: DataConfig = DigitsConfig()
    teacher: TeacherRecipe = TeacherRecipe()
    student: StudentConfig = StudentConfig()
    search: ExploreConfig = ExploreConfig()
    promotion: PromotionConfig = PromotionConfig()
    cluster: ClusterConfig = ClusterConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _workers_remember_the_same(self) -> "SearchConfig":
        for part in self.student.recipe.loss.features:
            if self.promotion.workers > 1 and part.needs_sample_ids:
                raise ValueError(
                    f"promotion.workers: the loss {part.name} remembers images, of which each "
                    "worker sees others: use one worker, or leave the loss out"
                )
        return self

    def to_yaml(self) -> str:
        """Every value, defaults too."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> SearchConfig:
    """The config in the YAML file `path` (the defaults without one), changed by `KEY.PATH=VALUE`
    texts, which need be right together only. Raises UserError that names the key or the file."""
    content = _read_yaml(path) if path else {}
    try:
        config = SearchConfig.model_validate(content)
    except ValidationError as error:
        raise from_validation(error, SearchConfig, str(path)) from None
    content = config.model_dump(mode="json")
    broken: list[tuple[str, ValidationError]] = []  # the overrides since it was last right
    for override in overrides:
        _override(content, override, whole=not broken)
        try:
            config = SearchConfig.model_validate(content)
        except ValidationError as error:  # which another override may mend
            broken.append((override, error))
        else:
            content, broken = config.model_dump(mode="json"), []
    if broken:
        raise _of_overrides(broken)
    return config


def flat(config: SearchConfig) -> dict[str, Any]:
    """Every value by its path, such as `search.trials`."""
    return _flat(config.model_dump(mode="json"))


def _flat(content: Any, above: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {above: content}
    parts = [_flat(value, f"{above}.{key}" if above else key) for key, value in content.items()]
    return {key: value for part in parts for key, value in part.items()}


def differences(before: SearchConfig, now: SearchConfig) -> dict[str, str]:
    """`search.trials is 20, was 10`, by the paths whose values differ."""
    old, new = flat(before), flat(now)
    keys = [key for key in old | new if old.get(key) != new.get(key)]
    return {key: f"{key} is {new.get(key)!r}, was {old.get(key)!r}" for key in keys}


# Beside its own errors, the reader passes on those of dates and numbers that are none.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML, where a key that is there twice is a mistake and not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        repeated = [key for index, key in enumerate(keys) if key in keys[:index]]
        if repeated:
            raise yaml.YAMLError(f"the key {repeated[0]!r} is there twice")
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3 for a text.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise UserError(f"{path}: cannot read the config: {error.strerror}") from None
    except _NOT_YAML as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: a config maps keys to values, got a {type(content).__name__}")
    return content


# Names on which it depends what other keys there are beside them.
_TOLD_APART = {
    "data.name",
    "teacher.optimizer.name",
    "teacher.schedule.name",
    "student.recipe.optimizer.name",
    "student.recipe.schedule.name",
}


def _override(content: dict[str, Any], override: str, *, whole: bool) -> None:
    """Sets one value in `content`, which has every key where it is `whole`."""
    where = f"--set {override}"
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"{where}: give KEY.PATH=VALUE, for example search.trials=50")
    try:
        value = yaml.load(text, _UniqueKeys)
    except _NOT_YAML:
        raise UserError(f"{where}: the value {text!r} is not YAML") from None
    section: Any = content
    *parents, last = key.split(".")
    for part in parents:
        _require_key(section, part, where, whole=whole)
        section = section.setdefault(part, {})
    _require_key(section, last, where, whole=whole)
    if key in _TOLD_APART and value != section.get(last):
        section.clear()  # the keys of another data set, say, are not this one's
    section[last] = value


def _require_key(section: Any, key: str, where: str, *, whole: bool) -> None:
    if not isinstance(section, dict):
        kind = "a list, which is set as a whole" if isinstance(section, list) else "a single value"
        raise UserError(f"{where}: there is no key {key!r}, what is above it is {kind}")
    if whole and key not in section:  # else validation will tell
        raise unknown_name("key", key, section, where)


def _of_overrides(broken: Sequence[tuple[str, ValidationError]]) -> UserError:
    """What is wrong after the last override, and with which of them it may have come."""
    told = [str(from_validation(error, SearchConfig, "")) for _, error in broken]
    since = told.index(told[-1])
    where = " ".join(f"--set {override}" for override, _ in broken[: since + 1])
    return from_validation(broken[-1][1], SearchConfig, where)
