"""What Optuna is told and what it proposes, with a real study and a real ledger, without Ray."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler

from search import proposals
from search.config import ExploreConfig
from search.ledger import Ledger, Trial, opened
from search.proposals import Proposals
from search.results import FAILED, FINISHED, STOPPED
from search.warm_start import WarmStart
from spaces import PolicySpace, scheme

CONFIG = ExploreConfig(random_trials=8)
FIRST = WarmStart(tuple(map(scheme, CONFIG.warm_start)))
SPACE = PolicySpace().including(FIRST.first)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path / "trials.jsonl") as ledger:
        yield ledger


def live(asked: Proposals, ledger: Ledger, trials: int) -> list[str]:
    """Lets `trials` trials begin and end one after the other; their policies."""
    found = []
    for _ in range(trials):
        trial = ledger.began(asked.propose())
        value = math.sin(7 * len(ledger.trials))
        end(trial, ledger, [value])
        asked.tell(trial)
        found.append(str(trial.policy))
    return found


def end(trial: Trial, ledger: Ledger, values: list[float], status: str = FINISHED) -> None:
    for epoch, value in enumerate(values, start=1):
        figures = {"epoch": epoch, "validation_loss": -value, "score": value}
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        ledger.epoch(trial, figures, seconds=1.0, node="here", device="cpu", batch_size=8)
    ledger.ended(trial, status)


@pytest.mark.parametrize(
    ("values", "status", "state", "value"),
    [
        ([2.0, 1.0], FINISHED, "COMPLETE", 1.0),
        ([3.0], STOPPED, "PRUNED", 3.0),
        ([2.0, math.nan], FINISHED, "FAIL", None),
        ([], FAILED, "FAIL", None),
        ([2.0], FAILED, "FAIL", None),
    ],
)
def test_what_optuna_is_told(ledger, values, status, state, value):
    """A stopped trial is no complete one, and one without a number is never learned from."""
    asked = Proposals(CONFIG, SPACE, FIRST)
    trial = ledger.began(asked.propose())
    end(trial, ledger, values, status)
    asked.tell(trial)
    found = asked._study.get_trials()[0]
    assert found.state.name == state
    assert found.value == value
    if state != "FAIL":
        assert list(found.intermediate_values.values()) == values


def test_the_schemes_are_asked_first_and_no_policy_twice(ledger):
    found = live(Proposals(CONFIG, SPACE, WarmStart((*FIRST.first, FIRST.first[0]))), ledger, 40)
    assert found[: len(FIRST.first)] == list(CONFIG.warm_start)
    assert len(set(found)) == 40


def test_where_a_sampler_repeats_itself_neighbours_are_taken(ledger, monkeypatch):
    wanted = {"form": "operations_1", "operation_1": "rotate", "mixing": "none"}
    wanted |= {"strength_1": 0.5, "probability_1": 1.0}

    class Stubborn(RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            return wanted[name]

    monkeypatch.setattr(proposals, "_sampler", lambda config, seed: Stubborn(seed))
    start = WarmStart(())
    live(Proposals(CONFIG, SPACE, start), ledger, 20)
    first, *others = ledger.of("probe")
    assert first.params == wanted
    assert len({trial.policy.identity for trial in ledger.of("probe")}) == 20
    differ = [sum(wanted.get(n) != v for n, v in trial.params.items()) for trial in others]
    assert sorted(differ)[10] <= 3  # half of them within one parameter, and those it brings along


def test_the_same_seed_proposes_the_same_policies(tmp_path):
    def found(seed: int) -> list[str]:
        config = CONFIG.model_copy(update={"seed": seed})
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        with opened(path) as ledger:
            return live(Proposals(config, SPACE, FIRST), ledger, 14)

    first, again, other = found(0), found(0), found(1)
    assert first == again
    assert first[:7] == other[:7]  # the schemes
    assert first[7:] != other[7:]


SEVERAL = {"further_objectives": ("validation_loss",)}


@pytest.mark.parametrize(
    ("searcher", "more"),
    [
        ("tpe", {}),
        ("gp", {"random_trials": 15}),  # it takes a second for each
        ("cmaes", {}),
        ("qmc", {}),
        ("random", {}),
        ("nsga2", {}),
        ("nsga2", SEVERAL),
        ("tpe", SEVERAL),
    ],
)
def test_a_study_filled_from_the_ledger_goes_on_as_the_first_one_would_have(
    tmp_path, searcher, more
):
    """Filled twice: before the sampler has taken over from random proposals, and after."""
    settings = {"random_trials": 6, "warm_start": ("none", "mixup")} | more
    config = ExploreConfig(searcher=searcher, **settings)
    first = WarmStart(tuple(map(scheme, config.warm_start)))

    def go_on(asked: Proposals, ledger: Ledger, trials: int) -> list[str]:
        asked.relive(ledger)
        running = [trial for trial in ledger.of("probe") if trial.status is None]
        for trial in running:
            end(trial, ledger, [math.sin(7 * len(ledger.trials))])
            asked.tell(trial)
        return [*map(str, (t.policy for t in running)), *live(asked, ledger, trials)]

    with opened(tmp_path / "whole.jsonl") as ledger:
        whole = live(Proposals(config, SPACE, first), ledger, 18)
    found = []
    for trials in (4, 7, 5):
        with opened(tmp_path / "cut.jsonl") as ledger:
            asked = Proposals(config, SPACE, first)
            found += go_on(asked, ledger, trials)
            if len(found) < 18:
                ledger.began(asked.propose())
    assert found == whole
    assert len(set(whole)) == 18


def test_several_objectives_are_told_together(ledger):
    config = ExploreConfig(searcher="nsga2", **SEVERAL)
    asked = Proposals(config, SPACE, FIRST)
    live(asked, ledger, 3)
    assert [trial.values for trial in asked._study.get_trials()] == [
        [trial.figures["score"], trial.figures["validation_loss"]] for trial in ledger.of("probe")
    ]
