"""What a run has come to, read while it is written: from ledgers as a search writes them."""

import json
import math

import pytest

from search.config import load_config
from search.ledger import Trial, opened, read, worked_on
from search.run_folder import RunFolder
from search.standing import standing
from spaces import UserError, scheme

CONFIG = load_config(overrides=["search={trials: 4, probe_epochs: 2}", "promotion.epochs=5"])


@pytest.fixture
def folder(tmp_path):
    found = RunFolder(tmp_path / "run")
    found.create(CONFIG.to_yaml(), {})
    lines = [
        {"event": "sitting", "versions": {"augury": "1"}, "at": 100.0},
        {"event": "stage", "stage": "probe", "trials": 4, "at": 100.0},
        *probe("00000", "none", began=100.0, ended=110.0, scores=(0.5, 0.3)),
        *probe("00001", "cutmix", began=110.0, ended=130.0, scores=(0.6, 0.4)),
        *probe("00002", "mixup", began=130.0, ended=None, scores=(0.2,)),
    ]
    found.ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


def probe(trial, name, *, began, ended, scores):
    policy = scheme(name).model_dump(mode="json")
    told = {"trial": trial, "at": began}
    yield (
        told
        | {"event": "began", "stage": "probe", "policy": policy, "seed": 0, "params": {}}
        | {"proposals": 1}
    )
    places = {"seconds": 5.0, "node": "n", "device": "cpu", "batch_size": 64}
    for epoch, score in enumerate(scores, start=1):
        figures = {"epoch": epoch, "score": score}
        yield told | {"event": "epoch", "figures": figures, **places}
    if ended is not None:
        yield told | {"event": "ended", "status": "finished", "failure": None, "at": ended}


def test_a_standing_counts_what_runs_and_names_the_best(folder):
    now = standing(folder)
    assert now.states == {"finished": 2, "running": 1}
    assert (now.stage, now.total, now.done, now.working) == ("probe", 4, False, False)
    assert now.best is not None and now.best.id == "00000"
    assert now.history == [0.3, 0.3]
    # One and a half of the four are left at least, one a time, of 15 seconds each.
    assert now.seconds_left is not None and 15 <= now.seconds_left <= 22.5
    said = json.loads(json.dumps(now.as_dict()))
    assert said["best"] == 0.3 and said["best_policy"] == "none" and said["seconds"] == 30


def test_a_line_that_is_being_written_is_left_out_and_left_alone(folder):
    torn = folder.ledger.read_bytes() + b'{"event": "ended", "tri'
    folder.ledger.write_bytes(torn)
    assert standing(folder).states == {"finished": 2, "running": 1}
    assert folder.ledger.read_bytes() == torn


def test_whoever_works_on_a_run_is_seen_and_not_disturbed(folder):
    with opened(folder.ledger) as ledger:
        assert standing(folder).working
        ledger.sitting({"augury": "1"})
        ledger.begin_stage("promotion", 12)
        now = standing(folder)
        assert (now.stage, now.total, now.states, now.seconds_left) == ("promotion", 12, {}, None)
        with pytest.raises(UserError, match="another process"), opened(folder.ledger):
            pass
        ledger.conclude()
        assert standing(folder).done and standing(folder).seconds_left == 0
        ledger.sitting({"augury": "1"})  # it is gone on with
        assert not standing(folder).done
    assert not worked_on(folder.ledger)


def test_a_validation_that_is_killed_leaves_a_concluded_run_at_its_end(folder):
    for concluded in (False, True):
        with opened(folder.ledger) as ledger:
            ledger.sitting({"augury": "1"})
            ledger.begin_stage("promotion", 1)
            if concluded:
                ledger.conclude()
        with opened(folder.ledger) as ledger:
            ledger.sitting({"augury": "1"})
            ledger.begin_stage("validation", 1)
            ledger.began(Trial("a-0-probe-1", "validation", scheme("none"), 0))
            ledger.begin_stage("promotion", 1)
            assert not standing(folder).done  # whoever watches goes on watching
        assert standing(folder).done == concluded
    with opened(folder.ledger) as ledger:
        ledger.sitting({"augury": "1"})
        ledger.begin_stage("probe", 9)
    assert not standing(folder).done


def test_probes_of_a_validation_are_as_long_as_it_says(folder):
    with opened(folder.ledger) as ledger:
        ledger.sitting({"augury": "1"})
        for epochs in (1, 2):
            ledger.begin_stage("validation", 3, epochs=epochs)
            ledger.began(Trial(f"a-0-probe-{epochs}", "validation", scheme("none"), 0))
    now = standing(folder)
    assert (now.total, now.epochs, [t.id for t in now.trials]) == (3, 2, ["a-0-probe-2"])


def test_a_folder_that_is_taken_is_refused_before_it_is_held(folder):
    with opened(folder.ledger), pytest.raises(UserError, match="another process"):
        folder.held(print)
    folder.held(print)


def test_a_ledger_that_is_missing_is_a_sentence(folder):
    folder.ledger.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        standing(folder)


def test_what_was_read_cannot_be_added_to(folder):
    with pytest.raises(OSError, match="fileno"):
        read(folder.ledger).conclude()
    assert math.isnan(read(folder.ledger).trials["00002"].ended_at)
