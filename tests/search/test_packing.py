"""How many trials share a device: the choice, and a search that measures for it."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search import packing
from search.cluster import concurrent_trials, fitting
from search.config import load_config
from search.packing import FILLED, WORTH, Measured, Node, fraction, measured
from search.progress import Silence
from search.run import resume_search, run_search
from search.run_folder import RunFolder
from spaces.errors import UserError

GIB = 2**30
TINY = load_config(
    overrides=[
        "data.student_images=40",
        "teacher={width: 4, epochs: 2}",
        "student.recipe={repeats: 2, batch_size: 8}",
        "search={trials: 2, probe_epochs: 1, warm_start: [none, cutmix]}",
        "promotion={top: 1, epochs: 1, seeds: 1}",
        "cluster={cpus_per_trial: auto, gpus_per_trial: auto}",
    ]
)


class Device:
    """Holds `there` bytes; a student takes `each`, and is as fast alone as `alone` of the whole."""

    def __init__(self, each: float, there: float, alone: float) -> None:
        self.each, self.there, self.alone = each, there, alone
        self.asked: list[int] = []

    def __call__(self, at_once: int) -> Measured | None:
        self.asked.append(at_once)
        used = at_once * self.each
        speed = 1000 * min(1.0, at_once * self.alone)
        return Measured(at_once, speed, used, self.there) if used <= self.there else None


devices = st.builds(
    Device,
    each=st.floats(0.1 * GIB, 8 * GIB),
    there=st.floats(8 * GIB, 80 * GIB),
    alone=st.floats(0.01, 1),
)


@given(devices, st.integers(1, 64))
def test_what_is_chosen_fits_and_every_step_to_it_was_worth_it(device, most):
    steps = measured(device, most)
    assert all(number <= most for number in device.asked)
    assert device.asked == sorted(set(device.asked))
    assert all(step.used <= FILLED * step.there for step in steps[1:])
    for fewer, more in pairwise(steps):
        assert more.images_per_second >= WORTH * fewer.images_per_second


@given(devices, st.integers(1, 64))
def test_nothing_more_would_have_been_worth_it(device, most):
    chosen = measured(device, most)[-1]
    double = Device(device.each, device.there, device.alone)(2 * chosen.at_once)
    assert (
        double is None
        or double.used > FILLED * double.there
        or double.at_once > most
        or double.images_per_second < WORTH * chosen.images_per_second
        or chosen.images_per_second == pytest.approx(1000)
    )


@given(devices, st.integers(1, 64), st.floats(1, 4))
def test_more_memory_never_means_fewer(device, most, times):
    larger = Device(device.each, times * device.there, device.alone)
    assert measured(larger, most)[-1].at_once >= measured(device, most)[-1].at_once


def test_where_not_even_one_can_be_trained_nothing_is_chosen():
    assert measured(Device(9 * GIB, 8 * GIB, 1), 4) == ()


@given(st.integers(1, 100), st.integers(1, 8))
def test_a_gpu_holds_as_many_fractions_as_were_chosen(at_once, gpus):
    share = fraction(1 / at_once)
    node = {"CPU": 1000.0, "GPU": float(gpus)}
    assert at_once * share <= 1
    assert fitting(node, {"CPU": 1.0, "GPU": share}) == at_once * gpus


@pytest.mark.parametrize(
    ("node", "trial", "count"),
    [
        ({"CPU": 12.0}, {"CPU": 8.0, "GPU": 0.0}, 1),
        ({"CPU": 16.0, "GPU": 4.0}, {"CPU": 1.0, "GPU": 0.4}, 8),  # 0.2 of each GPU is left
        ({"CPU": 16.0, "GPU": 4.0}, {"CPU": 1.0, "GPU": 2.0}, 2),
        ({"CPU": 16.0}, {"CPU": 1.0, "GPU": 0.5}, 0),
        ({}, {"CPU": 1.0, "GPU": 0.0}, 0),
    ],
)
def test_what_a_node_holds(node, trial, count):
    assert fitting(node, trial) == count


def test_gpus_come_with_their_part_of_the_cpus():
    node = Node("node:here", cpus=16, gpus=4, gpu="A100", memory=64 * GIB)
    assert node.kind == "16 CPU, 4 GPU A100"
    assert [node.cpus_of(1 / n) for n in (1, 2, 4, 8)] == [4, 2, 1, 0.5]


HERE = Node("node:here", cpus=4, gpus=0, gpu="", memory=64 * GIB)


@pytest.mark.parametrize(("gpus", "there"), [("auto", []), (0.0, []), (1.0, [HERE])])
def test_where_no_node_could_run_a_trial_nothing_is_made_up(gpus, there):
    config = load_config(
        overrides=["cluster.cpus_per_trial=auto", f"cluster.gpus_per_trial={gpus}"]
    )
    with pytest.raises(UserError, match="auto measures on a node that is there"):
        packing._found(config, None, there)


class Notes(Silence):
    """What was told of packing."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        if text.startswith("packing: "):
            self.told.append(text)


@pytest.mark.slow
def test_a_search_measures_once_and_goes_on_with_what_it_found(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SECONDS", 0.2)
    folder, notes = RunFolder(tmp_path / "run"), Notes()
    result = run_search(TINY, folder, notes)
    assert len(result.rows) == 2
    assert "cpus_per_trial: auto" in folder.config.read_text()
    (kept,) = json.loads(folder.packing.read_text())
    assert kept["gpus_per_trial"] == 0
    assert kept["cpus_per_trial"] in (1, 2)
    steps = kept["measured"]["2 CPU"]
    assert steps[-1]["at_once"] == 2 / kept["cpus_per_trial"]
    assert all(step["images_per_second"] > 0 for step in steps)
    assert all(50 * 2**20 < step["used"] < step["there"] for step in steps)
    number = int(2 / kept["cpus_per_trial"])
    assert concurrent_trials(packing.Packing(**kept).applied(TINY).cluster) == number
    before = folder.packing.read_text()
    resume_search(folder, notes, trials=3)
    assert notes.told == 2 * [kept["told"]]  # its speed is in it: another measurement would differ
    assert folder.packing.read_text() == before


@pytest.mark.parametrize(
    ("chosen", "measured_for", "wanted", "serves"),
    [(2, 2, 2, True), (2, 2, 1, True), (2, 2, 8, False), (2, 4, 8, True), (1, 1, 2, False)],
)
def test_what_was_measured_for_few_is_measured_again_for_many(chosen, measured_for, wanted, serves):
    steps = {"8 CPU": [{"at_once": 1}, {"at_once": chosen}]}
    known = packing.Packing({}, ["8 CPU"], 1.0, 0.0, "", steps, measured_for)
    assert known.serves(wanted) is serves


@pytest.mark.slow
def test_another_cluster_is_measured_anew_and_both_are_kept(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SECONDS", 0.2)
    folder, notes = RunFolder(tmp_path / "run"), Notes()
    run_search(TINY, folder, notes)
    folder.packing.write_text(folder.packing.read_text().replace('"2 CPU"', '"64 CPU"'))
    resume_search(folder, notes, trials=3)
    assert [entry["kinds"] for entry in _entries(folder.packing)] == [["64 CPU"], ["2 CPU"]]


@pytest.mark.slow
def test_workers_that_what_was_chosen_leaves_no_room_for_are_refused(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(packing, "SECONDS", 0.2)
    overrides = ["cluster.concurrent_trials=1", "promotion.workers=2"]
    (tmp_path / "config.yaml").write_text(TINY.to_yaml())
    config = load_config(tmp_path / "config.yaml", overrides)
    with pytest.raises(UserError, match=r"promotion\.workers: .*this machine has room for 1"):
        run_search(config, RunFolder(tmp_path / "run"), Notes())
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_probes_share_a_gpu_within_its_memory(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    folder, notes = RunFolder(tmp_path / "run"), Notes()
    run_search(TINY, folder, notes)
    (kept,) = _entries(folder.packing)
    (steps,) = kept["measured"].values()
    assert kept["gpus_per_trial"] == fraction(1 / steps[-1]["at_once"])
    assert steps[-1]["used"] <= FILLED * steps[-1]["there"]
    assert steps[0]["there"] >= torch.cuda.mem_get_info()[1] or len(steps) == 1
    assert "GPU" in notes.told[0]


def _entries(file: Path) -> list[dict]:
    return json.loads(file.read_text())
