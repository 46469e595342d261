"""Validating the ranking: probes of several lengths and students of full length for the same
policies, and how well the ones foretell the others."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from search.config import SearchConfig
from search.ledger import Ledger, Trial
from search.ledger_lines import Stage
from search.loggers import Callback
from search.predictors import (
    OUTCOMES,
    Prediction,
    Recommendation,
    predictions,
    recommend,
    require_enough,
)
from search.progress import Listener
from search.promote import promote, students_of
from search.results import FINISHED
from search.run_folder import RunFolder, write_text
from search.trainable import Shared, checkpoint_name
from search.trials import Sitting, run_trials
from search.verdict import Candidate, Role
from spaces import Policy, PolicySpace, randomness
from spaces.errors import UserError

COLUMNS = (
    *("figure", "probe_epochs", "outcome"),
    *("spearman", "spearman_low", "spearman_high", "kendall", "kendall_low", "kendall_high"),
    "policies",
)
TRIES = 50  # for a random policy that is not there yet


@dataclass(frozen=True)
class Validation:
    """What foretold the full length, best first; the policies of which that is known, and those
    that are left out since a probe or all of their students failed."""

    predictions: tuple[Prediction, ...]
    recommendation: Recommendation
    candidates: tuple[Candidate, ...]
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "recommendation": self.recommendation.as_dict(),
            "predictions": [prediction.as_dict() for prediction in self.predictions],
            "policies": [candidate.as_dict() for candidate in self.candidates],
            "left_out": list(self.left_out),
        }

    def as_csv(self) -> str:
        """A row per figure, length of probes and outcome."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(COLUMNS)
        for found in self.predictions:
            for outcome, c in found.outcomes.items():
                coefficients = (c.spearman, *c.spearman_interval, c.kendall, *c.kendall_interval)
                rows.writerow([found.figure, found.epochs, outcome, *coefficients, c.count])
        return text.getvalue()

    def write(self, folder: RunFolder) -> None:
        write_text(folder.validation, json.dumps(self.as_dict(), indent=2) + "\n")
        table = folder.validation.with_suffix(".csv")
        write_text(table, self.as_csv())
        folder.publish(folder.validation, table)


def policies_of(
    ledger: Ledger, named: Sequence[Policy], space: PolicySpace, config: SearchConfig, random: int
) -> list[Policy]:
    """The policies to validate on: the named ones, `random` of the space, the same ones every time,
    and those that the run has trained to full length. Raises UserError for too few of them."""
    students = ledger.students(config.promotion.kind)
    trained = [student.policy for student in students if student.status == FINISHED]
    base = config.data.base
    found = {policy.on(base).identity: policy.on(base) for policy in named}
    for index in range(random):
        for attempt in range(TRIES):
            drawn = _random(space, config.search.seed, index, attempt)
            if found.setdefault(drawn.identity, drawn) is drawn:
                break
        else:
            raise UserError(f"--random {random}: the space has not as many policies that are new")
    policies = list((found | {policy.identity: policy for policy in trained}).values())
    require_enough(len(policies))
    return policies


def _random(space: PolicySpace, *key: int) -> Policy:
    seed = randomness.key(*key, "validate") % 2**32
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return space.suggest(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask())


def lengths_of(config: SearchConfig) -> list[int]:
    """Lengths of probes: 1, 2, 4, ... epochs, up to those of the search's own."""
    longest = config.search.probe_epochs
    return [*(2**n for n in range(longest.bit_length()) if 2**n < longest), longest]


class Validator:
    """Probes and trains what is missing, and says what it tells. Nothing that the ledger has is
    done again."""

    def __init__(
        self,
        config: SearchConfig,
        shared: Shared,
        *,
        ledger: Ledger,
        folder: RunFolder,
        listen: Listener,
        loggers: Sequence[Callback] = (),
    ) -> None:
        self._config, self._shared, self._ledger = config, shared, ledger
        self._folder, self._listen, self._loggers = folder, listen, loggers

    def validate(self, policies: Sequence[Policy]) -> Validation:
        """Raises UserError where there are too few policies, and what running trials raises."""
        probed = {epochs: self._probes(policies, epochs) for epochs in lengths_of(self._config)}
        candidates = self._trained(policies)
        whole = [
            (c, [probes[c.policy.identity] for probes in probed.values()])
            for c in candidates
            if all(c.policy.identity in probes for probes in probed.values())
        ]
        outcomes = [_outcome(candidate) for candidate, _ in whole]
        by_length = {
            epochs: [figures[index] for _, figures in whole] for index, epochs in enumerate(probed)
        }
        seed = self._config.search.seed
        found = predictions(by_length, outcomes, seed=seed)
        kept = {candidate.policy.identity for candidate, _ in whole}
        return Validation(
            tuple(found),
            recommend(found, outcomes, seed=seed),
            tuple(candidate for candidate, _ in whole),
            tuple(str(policy) for policy in policies if policy.identity not in kept),
        )

    def _probes(self, policies: Sequence[Policy], epochs: int) -> Mapping[str, Mapping[str, float]]:
        """The last figures of probes that are `epochs` long, by identity; those that fail are left
        out. A shorter probe is one with a shorter schedule, not the beginning of a longer one: the
        user who asks for short probes gets those."""
        known = self._ledger.trials
        trials = []
        for policy in policies:
            trial = self._of_search(policy, epochs) or self._own(policy, epochs)
            trials.append(known.get(trial.id, trial))
        left = [trial for trial in trials if trial.status is None]
        text = f"probes of {epochs} epoch{'s' * (epochs > 1)}"
        self._begin("validation", text, trials, epochs)
        if left:
            run_trials(
                self._shared,
                cluster=self._config.cluster,
                sitting=Sitting(
                    self._ledger, epochs, self._config.search.objective, self._ended(epochs)
                ),
                unfinished=left,
                propose=lambda: None,
                folder=self._folder.tune / f"validate-{epochs}",
                loggers=self._loggers,
            )
        ended = [known[trial.id] for trial in trials]
        return {t.policy.identity: t.figures for t in ended if t.status == FINISHED}

    def _of_search(self, policy: Policy, epochs: int) -> Trial | None:
        """The probe that the search made of it, where that ran to its end and is as long."""
        if epochs != self._config.search.probe_epochs:
            return None
        probes = self._ledger.of("probe")
        same = (t for t in probes if t.policy.identity == policy.identity and t.status == FINISHED)
        return next(same, None)

    def _own(self, policy: Policy, epochs: int) -> Trial:
        seed = self._config.search.seed
        return Trial(f"{policy.identity}-{seed}-probe-{epochs}", "validation", policy, seed)

    def _trained(self, policies: Sequence[Policy]) -> Sequence[Candidate]:
        chosen: list[tuple[Policy, Role]] = [(policy, "candidate") for policy in policies]
        students, epochs = students_of(chosen, self._config), self._config.promotion.epochs
        self._begin("promotion", "full length", students, epochs)
        return promote(
            self._config,
            self._shared,
            chosen,
            ledger=self._ledger,
            folder=self._folder,
            ended=self._ended(self._config.promotion.epochs),
            loggers=self._loggers,
        ).candidates

    def _begin(self, stage: Stage, text: str, trials: Sequence[Trial], epochs: int) -> None:
        own = [trial for trial in trials if trial.stage == stage]  # not those of the search
        self._ledger.begin_stage(stage, len(own), epochs=epochs)
        self._listen.stage(text, len(trials), "validation_loss")
        for trial in trials:
            known = self._ledger.trials.get(trial.id)
            if known is not None and known.status is not None:
                self._listen.trial_ended(known.row())

    def _ended(self, epochs: int) -> Callable[[Trial], None]:
        def ended(trial: Trial) -> None:
            self._folder.drop_checkpoint(checkpoint_name(trial.policy, trial.seed, epochs))
            self._listen.trial_ended(trial.row())

        return ended


def _outcome(candidate: Candidate) -> dict[str, float]:
    runs = candidate.runs
    return {name: sum(getattr(run, name) for run in runs) / len(runs) for name in OUTCOMES}
