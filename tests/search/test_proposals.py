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
from spaces import PolicySpace

CONFIG = ExploreConfig(random_trials=8)
FIRST = CONFIG.first()
SPACE = PolicySpace().including(FIRST)


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
        figures = {"epoch": epoch} | ({"score": value} if math.isfinite(value) else {})
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
    found = live(Proposals(CONFIG, SPACE, (*FIRST, FIRST[0])), ledger, 40)
    assert found[: len(FIRST)] == list(CONFIG.warm_start)
    assert len(set(found)) == 40


def test_a_sampler_that_repeats_itself_gives_way_to_random_proposals(ledger, monkeypatch):
    class Stubborn(RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            return {"form": "operations_1", "operation_1": "identity", "mixing": "none"}[name]

    monkeypatch.setattr(proposals, "_sampler", lambda config, seed: Stubborn(seed))
    asked = Proposals(CONFIG, SPACE, FIRST)
    assert len(set(live(asked, ledger, 12))) == 12
    assert [t.proposals for t in ledger.of("probe")][len(FIRST) :] > [1] * 5


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


@pytest.mark.parametrize("cut", [3, 12])
def test_a_study_filled_from_the_ledger_goes_on_as_the_first_one_would_have(tmp_path, cut):
    with opened(tmp_path / "whole.jsonl") as ledger:
        whole = live(Proposals(CONFIG, SPACE, FIRST), ledger, 20)
    with opened(tmp_path / "cut.jsonl") as ledger:
        asked = Proposals(CONFIG, SPACE, FIRST)
        before = live(asked, ledger, cut)
        left = ledger.began(asked.propose())
    with opened(tmp_path / "cut.jsonl") as ledger:
        asked = Proposals(CONFIG, SPACE, FIRST)
        asked.relive(ledger)
        (running,) = [trial for trial in ledger.of("probe") if trial.status is None]
        assert running == left
        end(running, ledger, [math.sin(7 * len(ledger.trials))])
        asked.tell(running)
        after = live(asked, ledger, 19 - cut)
    assert [*before, str(left.policy), *after] == whole
