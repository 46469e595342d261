"""A search from its config to its verdict: data, teacher, probes, promotion, files."""

import dataclasses
import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from search.cluster import connected
from search.config import SearchConfig, differences, load_config
from search.explore import explore, spent
from search.failures import in_common, too_many
from search.ledger import Ledger, Trial, opened
from search.progress import Listener
from search.promote import Promoted, promote, select
from search.results import (
    CONTROL,
    FAILED,
    Row,
    ranked,
    to_table,
    with_full_length,
    write_parquet,
)
from search.run_folder import RunFolder, write_text
from search.trainable import Shared, checkpoint
from search.verdict import Candidate, Verdict, decide
from search.warm_start import WarmStart, warm_start
from spaces import PolicySpace, scheme
from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from trainers.datasets import ImageSplits, load_splits
from trainers.models import network_for
from trainers.student import StudentTrainer
from trainers.teacher import cached_teacher, frozen, teacher_hash

# What a run can be resumed with another value of: the rest would change what its trials mean.
MAY_CHANGE = (
    "cluster.",
    "promotion.",
    "search.trials",
    "search.budget.",
    "search.max_failed_share",
)


class SearchFailedError(Exception):
    """Nothing could be ranked, for a reason that is not the user's."""


@dataclass(frozen=True)
class SearchResult:
    """The run's folder, its rows ranked by objective, and what promotion found."""

    folder: RunFolder
    rows: list[Row]
    candidates: tuple[Candidate, ...]
    verdict: Verdict


def run_search(config: SearchConfig, folder: RunFolder, listen: Listener) -> SearchResult:
    """Runs the whole search and writes its folder.

    Raises UserError before anything is written where `config` cannot work, SearchFailedError where
    every probe or every student failed, and Interrupted where it was asked to stop. What was done
    is in the folder all the same, and `resume_search` goes on with it.
    """
    folder.require_new()
    return _search(config, folder, listen)


def resume_search(folder: RunFolder, listen: Listener, trials: int | None = None) -> SearchResult:
    """Goes on with the search in `folder`, up to `trials` probes where that is given.

    What is done stays as it is, what was begun goes on from its last epoch, and with one trial at
    a time the result is what it would have been without a break. Raises UserError where the config
    or the data are no longer what they were, and otherwise what `run_search` raises.
    """
    config, began_with = load_config(folder.config), folder.read_marker()["config"]
    found = differences(SearchConfig.model_validate(began_with), config)
    changed = [said for key, said in found.items() if not key.startswith(MAY_CHANGE)]
    if changed:
        raise UserError(
            f"{folder.config} is not what the run began with: {'; '.join(changed)}: "
            "change it back, or start another run"
        )
    if trials is not None:
        if trials < config.search.trials:
            raise UserError(f"--trials {trials}: the run has {config.search.trials} already")
        search = config.search.model_copy(update={"trials": trials})
        config = config.model_copy(update={"search": search})
        write_text(folder.config, config.to_yaml())
    return _search(config, folder, listen)


def _search(config: SearchConfig, folder: RunFolder, listen: Listener) -> SearchResult:
    splits = load_splits(config.data)
    made_by, start = _made_by(config, splits, folder)
    space = PolicySpace(config.search.space, base=config.data.base, image_size=splits.image_size)
    space = space.including([*start.first, *(policy for policy, _ in start.known)])
    student = config.student.start(splits)
    if not folder.marker.exists():
        _rehearse(config, splits, student)
    for note in splits.notes:
        listen.note(note)
    with connected(config.cluster) as dashboard:
        if dashboard:
            listen.note(f"Ray dashboard: {dashboard}")
        listen.note(f"search space: {space.size:,} policies")
        listen.stage(f"teacher {config.teacher.network} on {splits.name}")
        teacher = _teacher(config, splits, folder)
        if not folder.marker.exists():
            folder.create(config.to_yaml(), made_by)
            with atomic_write(folder.teacher) as temporary:
                torch.save(teacher.state_dict(), temporary)
        with opened(folder.ledger) as ledger:
            ledger.sitting(versions=made_by["versions"])
            run = _Run(config, folder, ledger, made_by, listen)
            shared = Shared.put(config, splits, teacher, student, checkpoints=folder.checkpoints)
            try:
                return run.search(shared, space, start)
            except OSError as error:
                raise SearchFailedError(f"the run could not be written: {error}") from error


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


class _Run:
    """The stages of a search, and its table, which is written as they go on."""

    def __init__(
        self,
        config: SearchConfig,
        folder: RunFolder,
        ledger: Ledger,
        made_by: dict[str, Any],
        listen: Listener,
    ) -> None:
        self._config, self._folder, self._ledger, self._listen = config, folder, ledger, listen
        said = {k: v for k, v in made_by.items() if k not in ("config", "warm_start")}
        self._metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in said.items()}
        self._metadata["config"] = config.to_yaml()
        self._next_write = 0.0

    def search(self, shared: Shared, space: PolicySpace, start: WarmStart) -> SearchResult:
        """Probes, promotion and verdict; raises OSError where the folder cannot be written."""
        rows = self._probe(shared, space, start)
        promoted = self._promote(shared, rows)
        verdict = decide(promoted.candidates, promoted.failures)
        rows = _with_promoted(rows, promoted.candidates)
        self._finish(rows, verdict)
        return SearchResult(self._folder, rows, promoted.candidates, verdict)

    def _probe(self, shared: Shared, space: PolicySpace, start: WarmStart) -> list[Row]:
        """The rows of all probes, ranked, each in the table soon after it ended."""
        search = self._config.search
        self._stage("probes", search.trials, search.objective, search.mode, self._probed())
        unfinished = len(self._probed()) < len(self._ledger.of("probe"))
        if unfinished or not spent(self._config, self._ledger):
            explore(
                self._config,
                shared,
                space,
                start,
                ledger=self._ledger,
                folder=self._folder.tune / "search",
                ended=self._probe_ended,
            )
        rows = self._ranked()
        self._write(rows)
        probes, reason = self._ledger.of("probe"), spent(self._config, self._ledger)
        if len(probes) < search.trials:
            self._listen.note(f"{reason or 'no policy is left'}: {len(probes)} were probed")
        if not probes:
            raise SearchFailedError("no policy was probed")
        if too_many(probes, search.max_failed_share) or all(r.status == FAILED for r in rows):
            raise SearchFailedError(f"the search stopped: of its probes {in_common(probes)}")
        return rows

    def _promote(self, shared: Shared, rows: Sequence[Row]) -> Promoted:
        """Trains the best of `rows` and the controls, but for students that are there already."""
        chosen = select(rows, self._config)
        count = len(chosen) * self._config.promotion.seeds
        done = [t for t in self._ledger.of("promotion") if t.status]
        self._stage("promotion", count, "validation_accuracy", "max", done)
        promoted = promote(
            self._config,
            shared,
            chosen,
            ledger=self._ledger,
            folder=self._folder,
            ended=self._ended,
        )
        if not promoted.candidates:
            raise SearchFailedError(
                f"every promoted student failed; the first: {promoted.failures[0]}"
            )
        return promoted

    def _finish(self, rows: Sequence[Row], verdict: Verdict) -> None:
        """Writes what the search has come to, and clears away what only a resumption needs."""
        found = json.dumps(verdict.as_dict(), indent=2, ensure_ascii=False)
        write_text(self._folder.verdict, found + "\n")
        verdict.winner.policy.save(self._folder.best_policy)
        self._write(rows, verdict)
        shutil.rmtree(self._folder.checkpoints, ignore_errors=True)

    def _stage(self, text: str, trials: int, figure: str, mode: str, done: Sequence[Trial]) -> None:
        self._listen.stage(text, trials, figure, mode)
        for trial in done:
            self._listen.trial_ended(trial.row())

    def _probed(self) -> list[Trial]:
        return [trial for trial in self._ledger.of("probe") if trial.status]

    def _ranked(self) -> list[Row]:
        search = self._config.search
        return ranked((t.row() for t in self._probed()), search.directions)

    def _probe_ended(self, trial: Trial) -> None:
        self._ended(trial)
        began = time.monotonic()
        if began >= self._next_write:
            self._write(self._ranked())
            # However long the table grows, writing it takes a twentieth of the time.
            self._next_write = time.monotonic() + 20 * (time.monotonic() - began)

    def _ended(self, trial: Trial) -> None:
        epochs = (
            self._config.search.probe_epochs
            if trial.stage == "probe"
            else self._config.promotion.epochs
        )
        left = checkpoint(self._folder.checkpoints, trial.policy, trial.seed, epochs)
        left.unlink(missing_ok=True)
        self._listen.trial_ended(trial.row())

    def _write(self, rows: Sequence[Row], verdict: Verdict | None = None) -> None:
        metadata = self._metadata
        if verdict is not None:
            metadata = metadata | {"verdict": json.dumps(verdict.as_dict(), ensure_ascii=False)}
        table = to_table(rows, self._config.search.objective, metadata)
        write_parquet(table, self._folder.policies)


def _made_by(
    config: SearchConfig, splits: ImageSplits, folder: RunFolder
) -> tuple[dict[str, Any], WarmStart]:
    """What makes the run, and where it begins: of one that is gone on with, as its marker says.

    Raises UserError where its data are others than now.
    """
    packages = ("augury", "torch", "torchvision", "ray", "optuna")
    now = {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "objective": config.search.objective,
        "mode": config.search.mode,
        "seed": config.search.seed,
        "data_hash": splits.content_hash,
        "teacher_hash": teacher_hash(splits, config.teacher),
        "config": config.model_dump(mode="json"),
    }
    if not folder.marker.exists():
        start = warm_start(config, now)
        return now | {"warm_start": start.as_json()}, start
    before = folder.read_marker()
    if before["data_hash"] != now["data_hash"]:
        raise UserError(
            f"{folder.path}: the data of {splits.name} are not those that the run began with: "
            f"their hash is {now['data_hash']}, was {before['data_hash']}"
        )
    return before | {"versions": now["versions"]}, WarmStart.from_json(before["warm_start"])


def _with_promoted(rows: Sequence[Row], candidates: Sequence[Candidate]) -> list[Row]:
    """`rows` with full-length figures, and a row for a control that was never probed."""
    rows = with_full_length(rows, {c.policy.identity: c.runs for c in candidates})
    probed = {row.policy.identity for row in rows}
    controls = [c for c in candidates if c.policy.identity not in probed]
    return rows + [
        Row(f"control_{c.role}", CONTROL, c.policy, full_length=c.runs) for c in controls
    ]
