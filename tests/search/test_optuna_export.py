"""The probes of a run as a study, read back by Optuna and by its dashboard."""

import json
import math
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from search.config import SearchConfig, load_config
from search.ledger import Ledger, Trial, opened
from search.optuna_export import export_study, follow_study
from search.proposals import Proposals
from search.results import FAILED, FINISHED, STOPPED
from search.run_folder import RunFolder
from search.warm_start import WarmStart
from spaces import PolicySpace, UserError, scheme

# A scheme that the space does not hold otherwise, on a base of the data's own.
START = WarmStart((scheme("none"), scheme("augmix"), scheme("cutmix")))
BASE = "data.base={operations: [{name: flip, probability: 0.5}]}"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return laid_out(tmp_path / "run", load_config(overrides=[BASE, "search.random_trials=4"]))


def laid_out(path: Path, config: SearchConfig) -> RunFolder:
    folder = RunFolder(path)
    folder.create(config.to_yaml(), {"warm_start": START.as_json()})
    return folder


@contextmanager
def searched(folder: RunFolder) -> Iterator[tuple[Proposals, Ledger]]:
    """What proposes policies of the run, and its ledger, as a search has them."""
    config = load_config(folder.config)
    space = PolicySpace(config.search.space, base=config.data.base).including(START.first)
    with opened(folder.ledger) as ledger:
        if not ledger.trials:
            ledger.sitting({"augury": "1"})
            ledger.begin_stage("probe", 10)
        asked = Proposals(config.search, space, START)
        asked.relive(ledger)
        yield asked, ledger


def begin(asked: Proposals, ledger: Ledger) -> Trial:
    trial = asked.propose()
    assert trial is not None
    return ledger.began(trial)


def epoch(trial: Trial, ledger: Ledger, number: int, value: float) -> None:
    figures = {"epoch": number, "validation_loss": 1 - value, "score": value}
    places = {"seconds": 1.0, "node": "here", "device": "cpu", "batch_size": 8}
    ledger.epoch(trial, figures, **places)


def live(asked: Proposals, ledger: Ledger, status: str = FINISHED, failure: str | None = None):
    trial = begin(asked, ledger)
    if status != FAILED:
        epoch(trial, ledger, 1, math.sin(7 * len(ledger.trials)))
        epoch(trial, ledger, 2, math.sin(8 * len(ledger.trials)))
    ledger.ended(trial, status, failure)
    asked.tell(trial)


def study_in(path: Path) -> optuna.Study:
    storage = (
        RDBStorage(f"sqlite:///{path}")
        if path.suffix == ".db"
        else JournalStorage(JournalFileBackend(str(path)))
    )
    found = optuna.load_study(study_name=None, storage=storage)
    if isinstance(storage, RDBStorage):  # sockets and files left open are errors here
        found.get_trials()
        storage.remove_session()
        storage.engine.dispose()
    return found


def told(trial: optuna.trial.FrozenTrial) -> tuple[Any, ...]:
    values = trial.intermediate_values
    return trial.state, trial.values, trial.params, trial.distributions, values


@pytest.mark.filterwarnings("ignore:PedAnova", "ignore:Some regimes")  # eight trials are few
@pytest.mark.parametrize("searcher", ["tpe", "cmaes", "nsga2"])
def test_optuna_reads_the_study_that_the_search_had(tmp_path, searcher):
    more = ["search.further_objectives=[validation_loss]"] if searcher == "nsga2" else []
    settings = [BASE, "search.random_trials=4", f"search.searcher={searcher}", *more]
    folder = laid_out(tmp_path / searcher, load_config(overrides=settings))
    with searched(folder) as (asked, ledger):
        for _ in range(8):
            live(asked, ledger)
        live(asked, ledger, FAILED, "DivergedError: the loss exploded")
        if not more:
            live(asked, ledger, STOPPED)
        begin(asked, ledger)
        every = iter(asked._study.get_trials())
        # Each of ours comes after those proposals of its own that repeated another.
        own = [[next(every) for _ in range(t.proposals)][-1] for t in ledger.trials.values()]
        policies = [str(trial.policy) for trial in ledger.trials.values()]
    assert export_study(folder, tmp_path / "study.log") == len(own)
    study = study_in(tmp_path / "study.log")
    found = study.get_trials()
    assert study.study_name == searcher
    assert len(study.directions) == 1 + len(more)
    assert list(map(told, found)) == list(map(told, own))
    assert found[8].state == TrialState.FAIL
    assert [trial.user_attrs["policy"] for trial in found] == policies
    assert found[8].user_attrs["failure"] == "DivergedError: the loss exploded"
    assert found[0].user_attrs["validation_loss"] == 1 - math.sin(8)
    target = (lambda trial: trial.values[1]) if more else None
    assert "form" in optuna.importance.get_param_importances(study, target=target)


def test_times_are_those_of_the_ledger_in_either_kind_of_file(folder, tmp_path):
    with searched(folder) as (asked, ledger):
        live(asked, ledger)
    lines = [json.loads(line) for line in folder.ledger.read_text().splitlines()]
    for line in lines:
        line["at"] = 1_000_000_000.0 + 60 * (line["event"] == "ended")
    folder.ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("study.log", "study.db"):
        export_study(folder, tmp_path / name)
        [trial] = study_in(tmp_path / name).get_trials()
        assert trial.duration is not None and trial.duration.total_seconds() == 60
        assert trial.datetime_start is not None
        assert trial.datetime_start.timestamp() == 1_000_000_000


def test_a_study_grows_with_the_search_until_it_ends(folder, tmp_path):
    file = tmp_path / "study.log"
    file.write_text("of an earlier day")
    with searched(folder) as (asked, ledger):
        live(asked, ledger)
        running = begin(asked, ledger)
        follower = Thread(target=follow_study, args=(folder, file))
        follower.start()
        states = [TrialState.COMPLETE, TrialState.RUNNING]
        wait_for(lambda: [trial.state for trial in study_in(file).get_trials()] == states)
        epoch(running, ledger, 1, 0.5)
        wait_for(lambda: study_in(file).get_trials()[1].intermediate_values == {1: 0.5})
        epoch(running, ledger, 2, 0.25)
        ledger.ended(running, FINISHED)
        asked.tell(running)
        begin(asked, ledger)
    follower.join(60)  # nobody works on it any more
    assert not follower.is_alive()
    _, second, third = study_in(file).get_trials()
    assert (second.state, second.value) == (TrialState.COMPLETE, 0.25)
    assert second.intermediate_values == {1: 0.5, 2: 0.25}
    assert second.user_attrs["score"] == 0.25
    assert third.state == TrialState.RUNNING


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(600):
        try:
            if holds():
                return
        except (OSError, ValueError, KeyError, IndexError):  # the study is not there yet
            pass
        time.sleep(0.1)
    raise AssertionError("it never came")


def test_the_dashboard_shows_the_run(folder):
    pytest.importorskip("optuna_dashboard")
    with searched(folder) as (asked, ledger):
        live(asked, ledger)
        live(asked, ledger, FAILED, "UserError: no")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from search.cli import main; main()"
    arguments = ["optuna", str(folder.path), "--port", str(port)]
    with subprocess.Popen(
        [sys.executable, "-c", command, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert f"http://127.0.0.1:{port}" in process.stdout.readline()
            address = f"http://127.0.0.1:{port}/api/studies"
            [study] = fetched(address)["study_summaries"]
            assert study["study_name"] == "run"
            trials = fetched(f"{address}/{study['study_id']}")["trials"]
            assert [trial["state"] for trial in trials] == ["Complete", "Fail"]
            attributes = {a["key"]: a["value"] for a in trials[1]["user_attrs"]}
            assert attributes["failure"] == "UserError: no"
        finally:
            process.terminate()


def fetched(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def test_what_cannot_be_written_is_a_sentence(folder, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        export_study(folder, tmp_path / "nowhere" / "study.log")
    with pytest.raises(UserError, match="question mark"):
        export_study(folder, tmp_path / "what?.db")
    before = folder.ledger.read_bytes()
    for write in (export_study, follow_study):
        with pytest.raises(UserError, match="lies in the run"):
            write(folder, folder.ledger)
    assert folder.ledger.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
