"""The ledger: what is kept, what a kill may tear, what is refused."""

import io
import json
import math
import resource
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.ledger import Ledger, Trial, opened
from search.results import FAILED, FINISHED
from spaces import UserError, scheme


def written(path: Path) -> Trial:
    """A trial with two epochs and its end, in a ledger at `path`."""
    trial = Trial("00000", "probe", scheme("cutmix"), 0, {"form": "scheme"}, proposals=2)
    with opened(path) as ledger:
        trial = ledger.began(trial)
        for epoch in (1, 2, 2):  # a student that goes on tells its last epoch again
            figures = {"epoch": epoch, "score": 0.1 + epoch / 3}
            ledger.epoch(trial, figures, seconds=1.5, node="here", device="cpu", batch_size=8)
        ledger.ended(trial, FINISHED, test_accuracy=0.5)
    return trial


def test_it_tells_again_what_it_was_told(tmp_path):
    trial = written(tmp_path / "trials.jsonl")
    with opened(tmp_path / "trials.jsonl") as ledger:
        assert ledger.of("probe") == [trial]
        assert ledger.of("promotion") == []
        assert [event for event, _ in ledger.history] == ["began", "ended"]
    assert trial.figures == {"epoch": 2, "score": 0.1 + 2 / 3}
    assert trial.values("score") == {1: 0.1 + 1 / 3, 2: 0.1 + 2 / 3}
    assert (trial.attempts, trial.proposals, trial.seconds) == (1, 2, 3.0)
    assert trial.row().policy == scheme("cutmix")


def test_every_epoch_counts_with_the_gpus_that_it_had(tmp_path):
    places = {"seconds": 8.0, "node": "here", "device": "cuda", "batch_size": 8}
    with opened(tmp_path / "trials.jsonl") as ledger:
        trial = ledger.began(Trial("00000", "probe", scheme("none"), 0))
        for epoch, gpus in enumerate((None, 0.5, 0.25), start=1):
            ledger.begin_stage("probe", 1, epochs=3, gpus=gpus)
            ledger.epoch(trial, {"epoch": epoch}, **places)
    with opened(tmp_path / "trials.jsonl") as ledger:
        (found,) = ledger.of("probe")
    assert found.seconds == 24
    assert found.gpu_seconds(otherwise=1.0) == 8 * (1 + 0.5 + 0.25)


def test_what_was_lost_can_begin_again_and_what_failed_by_itself_cannot(tmp_path):
    path = tmp_path / "trials.jsonl"
    reasons = ["the worker was lost 4 times", "OutOfMemoryError: no room", "DivergedError: it was"]
    with opened(path) as ledger:
        for number, reason in enumerate(reasons):
            trial = ledger.began(Trial(str(number), "probe", scheme("none"), 0))
            ledger.ended(trial, FAILED, reason)
    before = path.read_bytes()
    with opened(path) as ledger:
        ledger.reopen(ledger.of("probe"))
        assert [trial.status for trial in ledger.of("probe")] == [None, FAILED, FAILED]
        assert [trial.id for event, trial in ledger.history if event == "ended"] == ["1", "2"]
        assert path.read_bytes() == before  # who is killed now has it as it was
        ledger.began(ledger.trials["0"])
    with opened(path) as ledger:
        assert [trial.status for trial in ledger.of("probe")] == [None, FAILED, FAILED]
        ledger.ended(ledger.trials["0"], FINISHED)
    with opened(path) as ledger:
        assert next((trial.status, trial.attempts) for trial in ledger.of("probe")) == (FINISHED, 2)
        assert [trial.id for event, trial in ledger.history if event == "ended"] == ["1", "2", "0"]


def test_every_cut_leaves_a_ledger_that_goes_on(tmp_path):
    """A kill may leave any number of bytes of the last line."""
    path = tmp_path / "trials.jsonl"
    trial = written(path)
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(ends[0], len(whole), 7):
        path.write_bytes(whole[:cut])
        with opened(path) as ledger:
            (found,) = ledger.trials.values()
            assert found.status is None
            ledger.epoch(found, {"epoch": 3}, seconds=0.0, node="", device="", batch_size=8)
            ledger.ended(found, FINISHED)
        lines = path.read_text().splitlines()
        assert len(lines) == sum(end <= cut for end in ends) + 2
        assert all(json.loads(line)["trial"] == trial.id for line in lines)


def test_a_line_for_which_there_is_no_room_leaves_nothing(tmp_path):
    """The limit on the size of files tears a write as a full disk does."""
    path = tmp_path / "trials.jsonl"
    trial = written(path)
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as ledger:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
        try:
            for _ in range(2):  # other trials tell of their epochs, too, before the search ends
                with pytest.raises(OSError, match=r"File too large|No space left"):
                    ledger.ended(trial, FINISHED)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == whole
        ledger.sitting(versions={"augury": "0"})
    with opened(path) as ledger:
        assert ledger.of("probe") == [trial]


@pytest.mark.parametrize("line", ["[]", "{", '{"event": "ended", "trial": "of no one"}', "{}"])
def test_a_broken_line_that_is_not_the_last_is_refused(tmp_path, line):
    path = tmp_path / "trials.jsonl"
    written(path)
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(UserError, match="line 1 is not a line of a ledger"), opened(path):
        pass


BROKEN = [
    ("epoch", "score", "Infinity"),
    ("epoch", "score", "NaN"),
    ("epoch", "score", "1e999"),
    ("epoch", "score", "1" + "0" * 400),
    ("epoch", "score", '"0.5"'),
    ("epoch", "epoch", "0"),
    ("epoch", "epoch", "1.5"),
    ("epoch", "figures", "[]"),
    ("epoch", "seconds", "-1"),
    ("epoch", "at", '"x"'),
    ("began", "policy", "[" * 100_000),
    ("began", "proposals", "true"),
    ("began", "trial", '"../00000"'),
    ("began", "trial", '"first"'),
    ("ended", "status", '"done"'),
    ("ended", "event", '"over"'),
    ("ended", "test_accuracy", "NaN"),
]


@pytest.mark.parametrize(("event", "key", "value"), BROKEN)
def test_a_value_that_cannot_be_is_refused(tmp_path, event, key, value):
    path = tmp_path / "trials.jsonl"
    written(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    number = next(n for n, line in enumerate(lines) if line["event"] == event)
    line = lines[number]
    where = line["figures"] if key in line.get("figures", {}) else line
    where[key] = "HERE"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text.replace('"HERE"', value))
    expected = f"trials.jsonl: line {number + 1} is not a line of a ledger"
    with pytest.raises(UserError, match=expected), opened(path):
        pass


ODD = (None, True, 0, -1, 2**70, 1.5, -0.5, math.inf, math.nan, "", "x", "finished", [], [1], {})
values = st.sampled_from([*ODD, {"a": []}, [{}], {"epoch": math.inf}, {"epoch": True}])


@given(data=st.data())
def test_whatever_is_broken_there_is_a_ledger_or_a_sentence(data, lines_of_a_run):
    lines = [json.loads(line) for line in lines_of_a_run]
    places = [(line, key) for line in lines for key in line]
    places += [(line["figures"], key) for line in lines for key in line.get("figures", {})]
    holder, key = data.draw(st.sampled_from(places))
    if data.draw(st.booleans()):
        holder[key] = data.draw(values)
    else:
        del holder[key]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with suppress(UserError):
        found = Ledger(io.BytesIO(content), Path("trials.jsonl"))
        assert all(trial.row().seconds >= 0 for trial in found.trials.values() if trial.status)


@pytest.fixture(scope="module")
def lines_of_a_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "trials.jsonl"
    with opened(path) as ledger:
        ledger.sitting({"augury": "1"})
        ledger.begin_stage("probe", 1)
    written(path)
    return path.read_bytes().splitlines()


def test_a_ledger_that_cannot_be_opened_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError, match="cannot be written: Is a directory"), opened(tmp_path):
        pass


def test_two_processes_cannot_search_in_one_folder(tmp_path):
    path = tmp_path / "trials.jsonl"
    refused = pytest.raises(UserError, match="another process is searching")
    with opened(path), refused, opened(path):
        pass
    with opened(path):
        pass
