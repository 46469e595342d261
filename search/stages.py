"""The stages of a search: probes, promotion, verdict; its table, which is written as they go on."""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from search.config import SearchConfig
from search.errors import SearchFailedError
from search.explore import explore, spent
from search.failures import in_common, too_many
from search.ledger import Ledger, Trial
from search.loggers import Callback
from search.progress import Listener
from search.promote import promote, select, students_of
from search.ranking import probed, rows_of
from search.results import (
    FAILED,
    Row,
)
from search.run_folder import RunFolder, write_text
from search.table import to_table, write_parquet
from search.trainable import Shared, checkpoint_name
from search.verdict import Candidate, Verdict, decide
from search.warm_start import WarmStart
from spaces import PolicySpace
from trainers.datasets import Labelled

# However much there is to write, the table and the report take a hundredth of the time each.
SHARE = 100
FIRST_PAGE = 30  # seconds after which there is a report, of a search that takes so long


@dataclass(frozen=True)
class SearchResult:
    """The run's folder, its rows ranked by objective, and what promotion found."""

    folder: RunFolder
    rows: list[Row]
    candidates: tuple[Candidate, ...]
    verdict: Verdict


class Stages:
    """The stages of a search, and its table, which is written as they go on."""

    def __init__(
        self,
        config: SearchConfig,
        folder: RunFolder,
        ledger: Ledger,
        made_by: dict[str, Any],
        listen: Listener,
        *,
        images: Labelled,
        loggers: Sequence[Callback] = (),
    ) -> None:
        self._config, self._folder, self._ledger, self._listen = config, folder, ledger, listen
        self._images, self._loggers = images, loggers
        said = {k: v for k, v in made_by.items() if k not in ("config", "warm_start")}
        self._metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in said.items()}
        self._metadata["config"] = config.to_yaml()
        self._next_write = 0.0
        self._next_page = time.monotonic() + FIRST_PAGE

    def probe(self, shared: Shared, space: PolicySpace, start: WarmStart) -> None:
        """Probes until a budget is spent; what the ledger has is not done again, but for what was
        lost."""
        search = self._config.search
        self._ledger.reopen(self._ledger.of("probe"))
        self._ledger.begin_stage(
            "probe",
            search.trials,
            epochs=search.probe_epochs,
            gpus=self._config.cluster.resources.get("GPU"),
        )
        self._stage("probes", search.trials, search.objective, search.mode, self._probed())
        unfinished = len(self._probed()) < len(self._ledger.of("probe"))
        try:
            if unfinished or not spent(self._config, self._ledger):
                explore(
                    self._config,
                    shared,
                    space,
                    start,
                    ledger=self._ledger,
                    folder=self._folder.tune / "search",
                    ended=self._probe_ended,
                    loggers=self._loggers,
                )
        finally:  # whatever ended it, the table has what there is
            self._write(self._rows())
        probes, reason = self._ledger.of("probe"), spent(self._config, self._ledger)
        if len(probes) < search.trials:
            self._listen.note(f"{reason or 'no policy is left'}: {len(probes)} were probed")

    def promote(self, shared: Shared) -> SearchResult:
        """Trains the best of what was probed and the controls, but for students that are there
        already and were not lost, and writes the verdict. Raises SearchFailedError where there is
        none."""
        rows = probed(self._ledger, self._config)
        self._require_some(rows)
        chosen = select(rows, self._config)
        students = {student.id for student in students_of(chosen, self._config)}
        known = self._ledger.trials
        self._ledger.reopen(known[name] for name in students if name in known)
        done = [t for t in self._ledger.of("promotion") if t.status and t.id in students]
        self._ledger.begin_stage("promotion", len(students), epochs=self._config.promotion.epochs)
        self._stage("promotion", len(students), "validation_accuracy", "max", done)
        promoted = promote(
            self._config,
            shared,
            chosen,
            ledger=self._ledger,
            folder=self._folder,
            ended=self._ended,
            loggers=self._loggers,
        )
        if not promoted.candidates:
            said = f"every promoted student failed; the first: {promoted.failures[0]}"
            raise SearchFailedError(said, self._advice([known[name] for name in students]))
        verdict = decide(promoted.candidates, promoted.failures)
        rows = self._rows()
        self._finish(rows, verdict)
        return SearchResult(self._folder, rows, promoted.candidates, verdict)

    def _require_some(self, rows: Sequence[Row]) -> None:
        probes, share = self._ledger.of("probe"), self._config.search.max_failed_share
        again = f"augury resume {shlex.quote(str(self._folder))}"
        if not rows:
            reason = spent(self._config, self._ledger)
            said = f"no policy was probed: {reason}" if reason else "no policy was probed"
            raise SearchFailedError(said, f"with time for it, go on with: {again}")
        every = all(row.status == FAILED for row in rows)
        if every or too_many(probes, share):
            share_in = f"search.max_failed_share in {self._folder.named(self._folder.config)}"
            bear = f"to bear that, raise {share_in}, and go on with: {again}"
            raise SearchFailedError(
                f"the search stopped: of its probes {in_common(probes)}",
                (self._advice(probes) or f"go on with: {again}") if every else bear,
            )

    def _advice(self, failed: Sequence[Trial]) -> str | None:
        """What would help where all have failed; what was lost is worth another try."""
        if any(trial.lost for trial in failed):
            return None
        config = shlex.quote(self._folder.named(self._folder.config))
        return (
            "to go on would not help: mend the cause, in the config or in code of yours, and begin "
            f"anew with: augury search {config} --run ANOTHER"
        )

    def _finish(self, rows: Sequence[Row], verdict: Verdict) -> None:
        """Writes what the search has come to, and clears away what only a resumption needs."""
        found = json.dumps(verdict.as_dict(), indent=2, ensure_ascii=False)
        write_text(self._folder.verdict, found + "\n")
        verdict.winner.policy.save(self._folder.best_policy)
        self._folder.publish(self._folder.verdict, self._folder.best_policy)
        self._write(rows, verdict)
        self._ledger.conclude()
        self._show()
        if all(t.status and not t.lost for t in self._ledger.trials.values()):
            self._folder.drop_checkpoints()

    def _stage(self, text: str, trials: int, figure: str, mode: str, done: Sequence[Trial]) -> None:
        self._listen.stage(text, trials, figure, mode)
        for trial in done:
            self._listen.trial_ended(trial.row())

    def _probed(self) -> list[Trial]:
        return [trial for trial in self._ledger.of("probe") if trial.status]

    def _rows(self) -> list[Row]:
        return rows_of(self._ledger, self._config)

    def _probe_ended(self, trial: Trial) -> None:
        self._ended(trial)
        began = time.monotonic()
        if began >= self._next_write:
            self._write(self._rows())
            self._next_write = time.monotonic() + SHARE * (time.monotonic() - began)

    def _ended(self, trial: Trial) -> None:
        if not trial.lost:  # else it may yet go on from there
            search, promotion = self._config.search, self._config.promotion
            epochs = search.probe_epochs if trial.stage == "probe" else promotion.epochs
            self._folder.drop_checkpoint(checkpoint_name(trial.policy, trial.seed, epochs))
        self._listen.trial_ended(trial.row())
        began = time.monotonic()
        if began >= self._next_page:
            self._show(page_alone=True)
            self._next_page = time.monotonic() + SHARE * (time.monotonic() - began)

    def leave(self) -> None:
        """Writes the report of a search that ends here without a verdict: nobody works on it."""
        self._show(page_alone=True, working=False)

    def _show(self, *, page_alone: bool = False, working: bool | None = None) -> None:
        """Writes the report, which no search may end for."""
        from search.report import write_report  # what draws is not needed before

        try:
            to = self._folder.report if page_alone else None
            write_report(self._folder, self._images, to=to, working=working)
            figures = () if page_alone else sorted(self._folder.figures.glob("*"))
            self._folder.publish(self._folder.report, *figures)
        except Exception as error:
            self._listen.note(f"{self._folder.named(self._folder.report)} was not written: {error}")

    def _write(self, rows: Sequence[Row], verdict: Verdict | None = None) -> None:
        metadata = self._metadata
        if verdict is not None:
            metadata = metadata | {"verdict": json.dumps(verdict.as_dict(), ensure_ascii=False)}
        table = to_table(rows, self._config.search.directions, metadata)
        write_parquet(table, self._folder.policies)
        self._folder.publish(self._folder.policies)
