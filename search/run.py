"""A search from its config to its verdict: data, teacher, probes, promotion, files."""

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from search import recommendations
from search.cluster import concurrent_trials, connected, lacking, require_storage
from search.code_version import code_version
from search.config import AUTO, SearchConfig, differences, flat, load_config
from search.errors import SearchFailedError
from search.ledger import Ledger, opened
from search.loggers import Callback, loggers_for, require_trackers
from search.packing import keep, packing_for
from search.progress import SILENCE, Listener
from search.run_folder import RunFolder, write_text
from search.stages import SearchResult, Stages
from search.trainable import Shared
from search.trials import Interrupted
from search.validation import Validation, Validator, policies_of
from search.warm_start import WarmStart, warm_start
from spaces import PolicySpace, scheme
from spaces.atomic_write import atomic_write
from spaces.errors import UserError, from_validation
from spaces.schemes import policy_called
from trainers.datasets import ImageSplits, Labelled, load_splits
from trainers.models import network_for
from trainers.student import StudentTrainer
from trainers.teacher import cached_teacher, frozen, teacher_hash

# What a run can be resumed with another value of: the rest would change what its trials mean.
MAY_CHANGE = (
    "cluster.",
    "logging.",
    "promotion.",
    "search.trials",
    "search.budget.",
    "search.max_failed_share",
)


def run_search(
    config: SearchConfig, folder: RunFolder | Path | str, listen: Listener = SILENCE
) -> SearchResult:
    """Runs the whole search and writes its folder.

    Raises UserError before anything is written where `config` cannot work, SearchFailedError where
    every probe or every student failed, and Interrupted where it was asked to stop. What was done
    is in the folder all the same, and `resume_search` goes on with it.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder.at(folder)
    folder.require_new()
    if config.search.objective == AUTO:
        config = recommendations.applied(config)
        listen.note(
            f"recommended for these data: search.objective={config.search.objective}, "
            f"search.probe_epochs={config.search.probe_epochs}"
        )
    with folder.held(listen.note):
        return _search(config, folder, listen, new=True)


def resume_search(folder: RunFolder, listen: Listener, trials: int | None = None) -> SearchResult:
    """Goes on with the search in `folder`, up to `trials` probes where that is given.

    What is done stays as it is, what was begun goes on from its last epoch, and with one trial at
    a time the result is what it would have been without a break. Raises UserError where the config
    or the data are no longer what they were, and otherwise what `run_search` raises.
    """
    with folder.held(listen.note):
        config = _as_it_began(folder)
        if trials is not None and trials < config.search.trials:
            raise UserError(f"--trials {trials}: the run has {config.search.trials} already")
        return _search(_changed(config, "search", trials=trials), folder, listen)


def promote_again(
    folder: RunFolder,
    listen: Listener,
    *,
    top: int | None = None,
    seeds: int | None = None,
) -> SearchResult:
    """Promotes from the probes that the run in `folder` has, as its config says but for what is
    given, and renews the verdict; students that were trained are not trained again.

    Raises what `resume_search` raises.
    """
    with folder.held(listen.note):
        config = _changed(_as_it_began(folder), "promotion", top=top, seeds=seeds)
        return _search(config, folder, listen, probing=False)


def _as_it_began(folder: RunFolder) -> SearchConfig:
    """The config of a run; raises UserError where it means another run than the one begun."""
    marker, config = folder.read_marker(), load_config(folder.config)
    if not folder.ledger.exists():
        raise UserError(
            f"{folder.named(folder.ledger)} is missing: without it nothing is known of the run"
        )
    try:
        began_with = SearchConfig.model_validate(marker.get("config"))
    except ValidationError as error:  # by a version that had other keys
        raise from_validation(error, SearchConfig, str(folder.marker)) from None
    found = differences(began_with, config)
    changed = [said for key, said in found.items() if not key.startswith(MAY_CHANGE)]
    if changed:
        raise UserError(
            f"{folder.named(folder.config)} is not what the run began with: {'; '.join(changed)}: "
            "change it back, or start another run"
        )
    return config


def _changed(config: SearchConfig, section: str, **given: int | None) -> SearchConfig:
    """`config` with what is given."""
    update = {name: value for name, value in given.items() if value is not None}
    part = getattr(config, section).model_copy(update=update)
    return config.model_copy(update={section: part})


def validate_run(
    folder: RunFolder,
    listen: Listener,
    *,
    schemes: Sequence[str],
    random: int,
    seeds: int | None = None,
) -> Validation:
    """Probes and trains the policies of the run in `folder`, the named ones, and `random` ones of
    its space, as far as that is not done, and writes what foretells the full length.

    The recommendation is kept for `search.objective: auto`, too. Raises what `resume_search` does.
    """
    named = [policy_called(name) for name in schemes]
    with folder.held(listen.note):
        config = _changed(_as_it_began(folder), "promotion", seeds=seeds)
        with _at_work(config, folder, listen) as work:
            policies = policies_of(work.ledger, named, work.plain_space, config, random)
            work.ledger.sitting(work.made_by["versions"])
            validator = Validator(
                work.config,
                work.shared,
                ledger=work.ledger,
                folder=folder,
                listen=listen,
                loggers=work.loggers,
            )
            found = validator.validate(policies)
            found.write(folder)
            recommendations.keep(found.recommendation, work.made_by, config)
            return found


@dataclass(frozen=True)
class _Work:
    """What a process needs that works on a run: its ledger is open and its cluster connected."""

    config: SearchConfig  # with numbers where that of the run says auto
    ledger: Ledger
    made_by: dict[str, Any]
    start: WarmStart
    shared: Shared
    plain_space: PolicySpace
    space: PolicySpace  # with the policies of `start`
    images: Labelled  # all for training
    loggers: list[Callback]


def _search(
    config: SearchConfig,
    folder: RunFolder,
    listen: Listener,
    *,
    new: bool = False,
    probing: bool = True,
) -> SearchResult:
    with _at_work(config, folder, listen, new=new) as work:
        if config != load_config(folder.config):  # the run keeps what was given
            write_text(folder.config, config.to_yaml())
            folder.publish(folder.config)
        work.ledger.sitting(work.made_by["versions"])
        stages = Stages(
            work.config,
            folder,
            work.ledger,
            work.made_by,
            listen,
            images=work.images,
            loggers=work.loggers,
        )
        try:
            if probing:
                stages.probe(work.shared, work.space, work.start)
            return stages.promote(work.shared)
        except (Interrupted, SearchFailedError):
            stages.leave()
            raise


@contextmanager
def _at_work(
    config: SearchConfig, folder: RunFolder, listen: Listener, *, new: bool = False
) -> Iterator[_Work]:
    """A run that is worked on by this process alone, made where it is to be a new one: not gone on
    with where another process has made one there meanwhile."""
    _require_gpus(config)
    require_trackers(config.logging, folder)
    splits = load_splits(config.data)
    made_by, start = _made_by(config, splits, None if new else folder)
    plain = PolicySpace(config.search.space, base=config.data.base, image_size=splits.image_size)
    space = plain.including([*start.first, *(policy for policy, _ in start.known)])
    student = config.student.start(splits)
    if new:
        _rehearse(config, splits, student)
    for note in splits.notes:
        listen.note(note)
    workers = config.promotion.workers
    with connected(config.cluster, workers) as dashboard:
        if dashboard:
            listen.note(f"Ray dashboard: {dashboard}")
        if wanting := lacking(config.cluster, workers):
            listen.note(wanting)
        listen.note(f"search space: {space.size:,} policies")
        listen.stage(f"teacher {config.teacher.network} on {splits.name}")
        teacher = _teacher(config, splits, folder)
        checkpoints = folder.for_workers(folder.checkpoints)
        shared = Shared.put(config, splits, teacher, student, checkpoints=checkpoints)
        given, packing = config, packing_for(config, shared, folder.packing)
        if packing is not None:
            listen.note(packing.told)
            config = packing.applied(given)
            _require_gpus(config)
            if wanting := lacking(config.cluster, workers):
                if config.cluster.address == "local":
                    raise UserError(wanting)  # it would wait for ever
                listen.note(wanting)
        at_once = concurrent_trials(config.cluster)
        _lay_out(folder, given, made_by, teacher, new=new, at_once=at_once)
        with opened(folder.ledger, folder.publish_line) as ledger:
            if packing is not None:
                keep(packing, folder.packing)
            try:
                if folder.packing.exists():  # not where it could not be measured
                    folder.publish(folder.packing)
                loggers = loggers_for(config.logging, ledger, folder, listen.note)
                images = splits.train
                yield _Work(config, ledger, made_by, start, shared, plain, space, images, loggers)
            except ConnectionError as error:  # Ray's, though an OSError: files know of no other
                where = f"cluster.address in {folder.named(folder.config)} may name another cluster"
                raise SearchFailedError(
                    f"the connection to Ray was lost: {error} ({where})"
                ) from error
            except OSError as error:
                raise SearchFailedError(f"the run could not be read or written: {error}") from error


def _require_gpus(config: SearchConfig) -> None:
    """Raises UserError where GPU hours are counted and probes use no GPU."""
    if config.search.budget.gpu_hours is not None and config.cluster.gpus_per_trial == 0:
        raise UserError("search.budget.gpu_hours: probes use no GPU by cluster.gpus_per_trial")


def _lay_out(
    folder: RunFolder,
    config: SearchConfig,
    made_by: dict[str, Any],
    teacher: nn.Module,
    *,
    new: bool,
    at_once: int,
) -> None:
    """Makes the folder of a `new` run; raises UserError where there is no storage for the
    checkpoints of so many trials, or no more of it for a run that is gone on with."""
    try:
        if new:
            folder.create(config.to_yaml(), made_by)
        if not folder.teacher.exists():  # also where a kill came between the two
            with atomic_write(folder.teacher) as temporary:
                torch.save(teacher.state_dict(), temporary)
            folder.publish(folder.teacher)
        # Weights, their averages and Adam's two moments, and something for the rest.
        bytes_each = 5 * folder.teacher.stat().st_size
        require_storage(folder.for_workers(folder.path), at_once, bytes_each)
    except OSError as error:
        raise UserError(f"{folder}: the run cannot be written: {error}") from None
    except RuntimeError:  # torch's own, which tells of positions in the file
        raise UserError(f"{folder.teacher}: cannot be written, the disk may be full") from None


def _rehearse(config: SearchConfig, splits: ImageSplits, start: nn.Module | None) -> None:
    """Makes a student as probes will, of an untrained teacher; raises UserError where its layers
    cannot be quantized, or not be compared by its loss."""
    one = dataclasses.replace(splits, validation=splits.validation.take(torch.zeros(1).long()))
    StudentTrainer(
        teacher=frozen(network_for(config.teacher.architecture, splits, seed=0)),
        splits=one,
        policy=scheme("none"),
        quantization=config.student.quantization,
        recipe=config.student.recipe,
        epochs=1,
        seed=0,
        network=start,
    )


def _teacher(config: SearchConfig, splits: ImageSplits, folder: RunFolder) -> nn.Module:
    """The teacher, which the run keeps: another machine would train a slightly other one."""
    kept = {"weights": folder.teacher} if folder.teacher.exists() else {}
    return cached_teacher(splits, config.teacher.model_copy(update=kept))


def _made_by(
    config: SearchConfig, splits: ImageSplits, folder: RunFolder | None
) -> tuple[dict[str, Any], WarmStart]:
    """What makes the run, and where it begins: of one in a `folder`, which is gone on with, as its
    marker says.

    Raises UserError where its data are others than now.
    """
    packages = ("torch", "torchvision", "ray", "optuna")
    before = folder.read_marker() if folder else None
    now = {
        "versions": {"python": platform.python_version()}
        | {p: version(p) for p in packages}
        | {"augury": code_version()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "objective": config.search.objective,
        "mode": config.search.mode,
        "seed": config.search.seed,
        "config_hash": _hash(config),
        "data_hash": splits.content_hash,
        # The file of its weights may be gone since: the run has its own.
        "teacher_hash": before["teacher_hash"] if before else teacher_hash(splits, config.teacher),
        "config": config.model_dump(mode="json"),
    }
    if before is None:
        start = warm_start(config, now)
        return now | {"warm_start": start.as_json()}, start
    if before["data_hash"] != now["data_hash"]:
        raise UserError(
            f"{folder}: the data of {splits.name} are not those that the run began with: "
            f"their hash is {now['data_hash']}, was {before['data_hash']}"
        )
    return before | {"versions": now["versions"]}, WarmStart.from_json(before["warm_start"])


def _hash(config: SearchConfig) -> str:
    """Sixteen hex digits of all in `config` that a run keeps to its end."""
    kept = {k: v for k, v in flat(config).items() if not k.startswith(MAY_CHANGE)}
    return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=8).hexdigest()
