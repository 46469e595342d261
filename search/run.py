"""A search from its config to its verdict: data, teacher, probes, promotion, files."""

import dataclasses
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from search.cluster import connected
from search.config import SearchConfig
from search.explore import explore
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
from search.trainable import Shared
from search.verdict import Candidate, Verdict, decide
from spaces import Policy, PolicySpace, scheme
from trainers.datasets import ImageSplits, load_splits
from trainers.models import network_for
from trainers.student import StudentTrainer
from trainers.teacher import cached_teacher, frozen, teacher_hash


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

    Raises UserError before anything is written where `config` cannot work, and SearchFailedError
    where every probe or every student failed; finished trials are in the folder all the same.
    """
    folder.require_new()
    splits = load_splits(config.data)
    space = PolicySpace(config.search.space, base=config.data.base, image_size=splits.image_size)
    first = config.search.first()
    space = space.including(first)
    start = config.student.start(splits)
    _rehearse(config, splits, start)
    for note in splits.notes:
        listen.note(note)
    with connected(config.cluster) as dashboard:
        if dashboard:
            listen.note(f"Ray dashboard: {dashboard}")
        listen.note(f"search space: {space.size:,} policies")
        listen.stage(f"teacher {config.teacher.network} on {splits.name}")
        teacher = cached_teacher(splits, config.teacher)
        made_by = _made_by(config, splits)
        folder.create(config.to_yaml(), made_by)
        ledger = _Ledger(config, folder, made_by)
        shared = Shared.put(config, splits, teacher, start)
        rows = _probe(config, shared, space, first, ledger=ledger, listen=listen)
        promoted = _promote(config, shared, rows, folder, listen)
    verdict = decide(promoted.candidates, promoted.failures)
    rows = _with_promoted(rows, promoted.candidates)
    ledger.write(rows, verdict)
    write_text(folder.verdict, json.dumps(verdict.as_dict(), indent=2, ensure_ascii=False) + "\n")
    verdict.winner.policy.save(folder.best_policy)
    return SearchResult(folder, rows, promoted.candidates, verdict)


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


def _probe(
    config: SearchConfig,
    shared: Shared,
    space: PolicySpace,
    first: Sequence[Policy],
    *,
    ledger: "_Ledger",
    listen: Listener,
) -> list[Row]:
    """The rows of all probes, ranked, each in the ledger as soon as it ended."""
    objective, mode = config.search.objective, config.search.mode
    listen.stage("probes", config.search.trials, objective, mode)

    def trial_ended(row: Row) -> None:
        ledger.add(row)
        listen.trial_ended(row)

    folder = ledger.folder.tune / "search"
    found = explore(config, shared, space, first, folder=folder, trial_ended=trial_ended)
    rows = ranked(found, objective, mode)
    ledger.write(rows)
    if all(row.status == FAILED for row in rows):
        raise SearchFailedError(f"every probe failed; the first: {rows[0].failure}")
    return rows


def _promote(
    config: SearchConfig, shared: Shared, rows: Sequence[Row], folder: RunFolder, listen: Listener
) -> Promoted:
    chosen = select(rows, config)
    students = len(chosen) * config.promotion.seeds
    listen.stage("promotion", students, "validation_accuracy", "max")
    promoted = promote(config, shared, chosen, folder, listen.trial_ended)
    if not promoted.candidates:
        raise SearchFailedError(f"every promoted student failed; the first: {promoted.failures[0]}")
    return promoted


def _made_by(config: SearchConfig, splits: ImageSplits) -> dict[str, Any]:
    packages = ("augury", "torch", "torchvision", "ray", "optuna")
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "objective": config.search.objective,
        "mode": config.search.mode,
        "seed": config.search.seed,
        "data_hash": splits.content_hash,
        "teacher_hash": teacher_hash(splits, config.teacher),
    }


def _with_promoted(rows: Sequence[Row], candidates: Sequence[Candidate]) -> list[Row]:
    """`rows` with full-length figures, and a row for a control that was never probed."""
    rows = with_full_length(rows, {c.policy.identity: c.runs for c in candidates})
    probed = {row.policy.identity for row in rows}
    controls = [c for c in candidates if c.policy.identity not in probed]
    return rows + [
        Row(f"control_{c.role}", CONTROL, c.policy, full_length=c.runs) for c in controls
    ]


class _Ledger:
    """Writes policies.parquet whenever a probe ends: whatever happens next, it is kept."""

    def __init__(self, config: SearchConfig, folder: RunFolder, made_by: dict[str, Any]) -> None:
        self._config, self.folder = config, folder
        self._metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in made_by.items()}
        self._metadata["config"] = config.to_yaml()
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        search = self._config.search
        self.write(ranked(self._rows, search.objective, search.mode))

    def write(self, rows: Sequence[Row], verdict: Verdict | None = None) -> None:
        metadata = self._metadata
        if verdict is not None:
            metadata = metadata | {"verdict": json.dumps(verdict.as_dict(), ensure_ascii=False)}
        table = to_table(rows, self._config.search.objective, metadata)
        write_parquet(table, self.folder.policies)
