"""Schedulers and budgets, which go on from the ledger as they would have without a break."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from search.config import BudgetConfig, ExploreConfig, SearchConfig
from search.explore import spent
from search.ledger import Ledger, Trial, opened
from search.promote import select
from search.results import FINISHED, STOPPED, Row, ranked
from search.schedulers import scheduler_for
from spaces import Chain, Operation, Policy, scheme

EPOCHS, TRIALS = 9, 14
CONFIG = ExploreConfig(probe_epochs=EPOCHS)
SCORES = np.random.default_rng(1).normal(size=(TRIALS, EPOCHS)).tolist()
PLACE = {"seconds": 1800.0, "node": "here", "device": "cpu", "batch_size": 8}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path / "trials.jsonl") as ledger:
        ledger.sitting({"augury": "1.0"})
        yield ledger


def told(epoch: int, score: float) -> dict[str, Any]:
    return {"epoch": epoch, "score": score, "training_iteration": 1}


def run(ledger: Ledger, config: ExploreConfig, cut: tuple[int, int]) -> list[tuple[int, int]]:
    """Runs one trial after the other; where each was stopped. At `cut`, a trial and an epoch, the
    ledger has the epoch but nobody decided on it, and everything but the ledger is lost."""
    scheduler, lengths = scheduler_for(config, ledger), []
    for number, scores in enumerate(SCORES):
        trial = ledger.began(Trial(f"{number:05}", "probe", scheme("none"), 0))
        of_tune = TuneTrial("probe", config={"trial": trial.id}, stub=True)
        scheduler.on_trial_add(None, of_tune)
        for epoch, score in enumerate(scores, start=1):
            ledger.epoch(trial, {"epoch": epoch, "score": score}, **PLACE)
            if (number, epoch) == cut:
                scheduler = scheduler_for(config, ledger)
                of_tune = TuneTrial("probe", config={"trial": trial.id}, stub=True)
                scheduler.on_trial_add(None, of_tune)
            if epoch == EPOCHS:
                break  # the trial says that it is done, and Tune does not ask
            decision = scheduler.on_trial_result(None, of_tune, told(epoch, score))
            assert decision in (TrialScheduler.CONTINUE, TrialScheduler.STOP)
            if decision == TrialScheduler.STOP:
                break
        scheduler.on_trial_complete(None, of_tune, told(epoch, score))
        ledger.ended(trial, FINISHED if epoch == EPOCHS else STOPPED)
        lengths.append(epoch)
    return lengths


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_a_scheduler_goes_on_as_if_nothing_had_been(tmp_path, name):
    config = CONFIG.model_copy(update={"scheduler": name})
    found = []
    for cut in [(-1, -1), (3, 1), (8, 1), (TRIALS - 1, 1)]:
        with opened(tmp_path / f"{cut}.jsonl") as ledger:
            found.append(run(ledger, config, cut))
    assert found == [found[0]] * 4
    assert 0 < sum(length < EPOCHS for length in found[0]) < TRIALS


def test_hyperband_denies_some_trials_less_than_asha(tmp_path):
    lengths = {}
    for name in ("asha", "hyperband"):
        with opened(tmp_path / name) as ledger:
            config = CONFIG.model_copy(update={"scheduler": name})
            lengths[name] = sum(run(ledger, config, (-1, -1)))
    assert lengths["hyperband"] > lengths["asha"]


def test_a_scheme_is_promoted_to_compare_with_though_all_were_stopped():
    told = [("rotate", FINISHED, 0.5), ("mixup", STOPPED, 0.4), ("cutmix", STOPPED, 0.3)]
    rows = ranked((row(*one) for one in told), CONFIG.directions)
    chosen = select(rows, SearchConfig())
    assert [(str(policy), role) for policy, role in chosen] == [
        ("rotate 10", "candidate"),
        ("cutmix", "scheme"),
        ("none", "none"),
    ]


def row(name: str, status: str, score: float) -> Row:
    rotation = Policy(chains=(Chain(operations=(Operation(name="rotate", magnitude=10),)),))
    policy = rotation if name == "rotate" else scheme(name)
    return Row(name, status, policy, figures={"score": score, "epoch": 1})


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({}, None),
        ({"target": 0.5}, None),
        ({"target": 1.5}, "search.budget.target: score reached 1.5"),
        ({"gpu_hours": 0.6}, None),
        ({"gpu_hours": 0.4}, "search.budget.gpu_hours: 0.4 GPU hours are used"),
        ({"hours": 1e-9}, "search.budget.hours: 1e-09 hours are over"),
        ({"hours": 1.0}, None),
    ],
)
def test_budgets(ledger, budget, said):
    content = SearchConfig().model_dump()
    content["search"] |= {"budget": BudgetConfig(**budget).model_dump(), "trials": 2}
    content["cluster"]["gpus_per_trial"] = 1
    config = SearchConfig.model_validate(content)
    trial = ledger.began(Trial("00000", "probe", scheme("none"), 0))
    ledger.epoch(trial, {"epoch": 1, "score": 1.0}, **PLACE)
    ledger.ended(trial, FINISHED)
    assert spent(config, ledger) == said
    ledger.began(Trial("00001", "probe", scheme("cutmix"), 0))
    if not said:
        assert spent(config, ledger) == "all 2 trials were begun"
