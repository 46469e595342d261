"""What a terminal, and a pipe, show of a run while it is searched."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from search.cli import app
from search.config import load_config
from search.ledger import Ledger, Trial, opened
from search.run_folder import RunFolder
from search.standing import look_at, until
from search.watch import BARS, duration, frame, line, sparkline, watch
from spaces import UserError, scheme

CONFIG = load_config(overrides=["search={trials: 5, probe_epochs: 2}"])


@pytest.fixture
def folder(tmp_path):
    found = RunFolder(tmp_path / "run")
    found.create(CONFIG.to_yaml(), {})
    return found


@pytest.fixture
def ledger(folder) -> Iterator[Ledger]:
    with opened(folder.ledger) as ledger:
        ledger.sitting({"augury": "1"})
        ledger.begin_stage("probe", 5)
        yield ledger


def began(ledger: Ledger, name: str) -> Trial:
    return ledger.began(Trial(f"{len(ledger.trials):05}", "probe", scheme(name), 0))


def epoch(ledger: Ledger, trial: Trial, number: int, score: float) -> None:
    places = {"seconds": 1.0, "node": "here", "device": "cpu", "batch_size": 8}
    ledger.epoch(trial, {"epoch": number, "score": score}, **places)


def probe(ledger: Ledger, name: str, score: float) -> None:
    trial = began(ledger, name)
    epoch(ledger, trial, 2, score)
    ledger.ended(trial, "finished")


def told(folder: RunFolder) -> dict[str, Any]:
    return look_at(folder)().as_dict()


def on_screen(folder: RunFolder) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(frame(told(folder)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_frame_has_the_best_what_runs_and_what_failed(folder, ledger):
    probe(ledger, "cutmix", 0.5)
    probe(ledger, "mixup", 0.25)
    probe(ledger, "none", 0.75)
    ledger.ended(began(ledger, "augmix"), "failed", "DivergedError: the loss [exploded]")
    running = began(ledger, "trivial_augment")
    epoch(ledger, running, 1, 0.1)
    shown = on_screen(folder)
    assert ["best", "score", "0.2500", "mixup"] in [row.split() for row in shown.splitlines()]
    assert f"{BARS[-1]}{BARS[0]}{BARS[0]}  0.5000 to 0.2500" in shown
    assert "1 running, 3 finished, 1 failed (1 diverged)" in shown
    assert "augmix: DivergedError: the loss [exploded]" in shown
    assert shown.splitlines()[-1].split()[:3] == ["00004", "trivial_augment", "1/2"]
    assert "4/5" in shown and "left of this stage" in shown and "nobody" not in shown


def test_a_frame_of_a_run_that_has_just_begun(folder, ledger):
    assert "0/5" in on_screen(folder) and "none yet" in on_screen(folder)
    assert line({"working": True, "done": False}) == "not begun yet"


def test_a_pipe_gets_a_line_when_something_changed_and_it_ends_with_the_search(folder, ledger):
    out = io.StringIO()
    ended: list[Any] = []
    watching = threading.Thread(
        target=lambda: ended.append(watch(lambda: told(folder), Console(file=out, width=20)))
    )
    watching.start()
    wait_for(lambda: "0/5" in out.getvalue())
    probe(ledger, "cutmix", 0.5)
    wait_for(lambda: "1/5" in out.getvalue())
    ledger.conclude()
    watching.join(60)
    assert ended[0]["done"]
    assert out.getvalue().splitlines() == [
        "probe 0/5: none yet",
        "probe 1/5: 1 finished; best score 0.5000 cutmix",
        "probe 1/5: 1 finished; best score 0.5000 cutmix; done",
    ]


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_a_ledger_is_read_again_only_where_it_has_grown(folder, ledger):
    look = look_at(folder)
    first = look()
    assert look().ledger is first.ledger
    probe(ledger, "cutmix", 0.5)
    assert look().ledger is not first.ledger
    assert list(until(lambda n: n == 2, iter([0, 2, 4]).__next__)) == [0, 2]


def test_the_command_says_what_there_is_of_a_run_that_was_left(folder):
    with opened(folder.ledger) as ledger:
        ledger.sitting({"augury": "1"})
        ledger.begin_stage("probe", 5)
        probe(ledger, "cutmix", 0.5)
    runner, where = CliRunner(), str(folder.path)
    for arguments, code in ([where], 1), ([where, "--once"], 0):
        done = runner.invoke(app, ["watch", *arguments])
        assert done.exit_code == code, done.output
        assert "nobody works on it" in done.stdout and "cutmix" in done.stdout
    nowhere = runner.invoke(app, ["watch", f"{where}-another"])
    assert isinstance(nowhere.exception, UserError)


def test_a_name_of_a_run_and_of_a_job_is_asked_back(folder, monkeypatch):
    monkeypatch.chdir(folder.path.parent)
    (folder.path.parent / "other").mkdir()
    runner = CliRunner()

    def said(*words: str) -> str:
        return str(runner.invoke(app, ["watch", "--once", *words]).exception)

    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert said("run") == said("./run") == "None"
    nowhere = "http://127.0.0.1:9"
    assert f"{nowhere}: cannot be reached" in said("run", "--address", nowhere)
    monkeypatch.setenv("RAY_ADDRESS", nowhere)
    assert "watch ./run, or give --address" in said("run")
    assert said("./run") == "None"
    assert f"{nowhere}: cannot be reached" in said("other")


def test_a_sparkline_spans_what_there_is():
    assert sparkline([0.0, 7.0, 3.0]) == f"{BARS[0]}{BARS[7]}{BARS[3]}"
    assert sparkline([2.0, 2.0]) == BARS[0] * 2
    assert sparkline([-1e308, 1e308]) == BARS[0] * 2  # a span that is no number


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (90, "2 min"), (3599, "1 h 00 min"), (5000, "1 h 23 min")],
)
def test_durations_in_words(seconds, said):
    assert duration(seconds) == said


def test_what_is_for_machines_stays_small(folder, ledger):
    for number in range(150):
        probe(ledger, "none", 1 / (1 + number))
    history = told(folder)["history"]
    assert len(history) <= 60 and history[-1] == 1 / 150
    assert len(json.dumps(told(folder))) < 2500
