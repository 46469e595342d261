"""What goes wrong with trials, and what becomes of it: real faults in real workers."""

import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from search.config import SearchConfig, load_config
from search.explore import explore
from search.failures import in_common, too_many
from search.ledger import LOST, Ledger, Trial, opened
from search.results import FAILED, FINISHED
from search.trainable import Shared
from search.trials import _reason
from search.warm_start import warm_start
from spaces import PolicySpace, scheme
from trainers.datasets import load_splits
from trainers.models import build_network
from trainers.teacher import frozen

pytestmark = pytest.mark.usefixtures("cluster")
CONFIG = load_config(
    overrides=[
        "data.student_images=40",
        "teacher.width=4",
        "student={network: 'faulty:network', recipe: {repeats: 1, batch_size: 8}}",
        "search.warm_start=[none, cutmix, mixup, trivial_augment, rand_augment, cutout]",
        "search.trials=6",
        "search.probe_epochs=1",
        "cluster.concurrent_trials=1",
    ]
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path / "trials.jsonl") as ledger:
        yield ledger


@pytest.fixture
def plan(cluster: str) -> Path:
    """The file with the faults to come."""
    import faulty  # in tests/fixtures, which the cluster has on its path

    return faulty.plan()


def probe(config: SearchConfig, ledger: Ledger, ended: Callable[[Trial], None]) -> None:
    splits = load_splits(config.data)
    teacher = frozen(build_network("resnet8", 10, width=4, seed=0))
    folder, start = ledger.path.parent, warm_start(config, {})
    shared = Shared.put(config, splits, teacher, checkpoints=folder / "checkpoints")
    space = PolicySpace().including(start.first)
    explore(config, shared, space, start, ledger=ledger, folder=folder / "tune", ended=ended)


def test_every_fault_is_its_trials_own_and_the_search_goes_on(ledger, plan):
    faults = "none  kill none  raise  memory none  memory memory  nan"
    plan.write_text(faults)
    probe(CONFIG, ledger, lambda trial: None)
    fine, lost, wrong, halved, too_big, diverged = ledger.of("probe")
    assert (fine.status, fine.places["batch_size"]) == (FINISHED, 8)
    assert (lost.status, lost.places["batch_size"]) == (FINISHED, 8)  # on another worker
    assert [trial.attempts for trial in (fine, lost, wrong, halved)] == [1, 2, 1, 1]
    assert wrong.status == FAILED
    assert wrong.failure.startswith("TypeError: a mistake of the user's (faulty.py, line ")
    assert (halved.status, halved.places["batch_size"]) == (FINISHED, 4)
    assert too_big.status == FAILED
    assert too_big.failure.startswith("OutOfMemoryError: no room on the device")
    assert diverged.failure == ("DivergedError: the loss is no longer a finite number in epoch 1")
    assert set(plan.read_text().split()) == {"none"}  # every fault has been


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_lost_too_often_is_tried_again_in_another_sitting_and_nothing_else(ledger, plan):
    plan.write_text("kill kill kill kill  memory memory  nan  raise")
    probe(CONFIG, ledger, lambda trial: None)
    lost, *others = ledger.of("probe")
    assert (lost.status, lost.failure, lost.lost) == (FAILED, "the worker was lost 4 times", True)
    assert [(trial.status, trial.lost) for trial in others[:3]] == [(FAILED, False)] * 3
    plan.write_text("")
    copy = shutil.copy(ledger.path, ledger.path.with_name("copy.jsonl"))
    with opened(copy) as again:  # as another process reads it
        again.reopen(again.of("probe"))
        probe(CONFIG, again, lambda trial: None)
        found, *same = again.of("probe")
    assert (found.status, found.attempts) == (FINISHED, 5)
    assert same == others


def test_a_disk_that_is_full_ends_the_search_and_what_was_written_counts(ledger, plan):
    """The limit on the size of files stands for the disk: writing beyond it fails as well."""
    plan.write_text("")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(trial: Trial) -> None:
        if trial.id == "00001":
            size = ledger.path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))

    try:
        with pytest.raises(OSError, match="File too large"):
            probe(CONFIG, ledger, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_for_a_worker_is_no_fault_of_its_trial(ledger, plan):
    plan.write_text("full " * 4)
    with pytest.raises(OSError, match=rf"{ledger.path.parent}/checkpoints: "):
        probe(CONFIG, ledger, lambda trial: None)
    (trial,) = ledger.trials.values()
    assert (trial.status, trial.epochs) == (None, {})  # it is gone on with where there is room


def ended(name: str, failure: str | None = None) -> Trial:
    trial = Trial(name, "probe", scheme(name), 0, status=FAILED if failure else FINISHED)
    trial.failure = failure
    return trial


def test_what_failures_have_in_common():
    mixed = ["cutmix", "rand_augment+cutmix", "trivial_augment+cutmix"]
    trials = [ended(name, f"ValueError: {index} images") for index, name in enumerate(mixed)]
    trials.append(ended("cutout+cutmix", "TypeError: none"))
    trials += [ended("none"), ended("mixup"), ended("trivial_augment")]
    assert in_common(trials) == (
        "4 of 7 failed: 3 of 4 with 'ValueError: 0 images'; "
        "all failed ones, and no other, had the mixing cutmix"
    )
    assert not too_many(trials, 0.5)  # few
    assert too_many(trials * 2, 0.5)
    assert not too_many(trials * 2, 0.6)


@pytest.mark.parametrize(
    "gone",
    [ActorDiedError(), ActorUnavailableError("Socket closed", bytes(16))],
    ids=["died", "unavailable"],
)
def test_a_worker_that_is_gone_is_no_fault_of_its_trial(gone, tmp_path):
    (tmp_path / "error.txt").write_text(f"Failure # 1\n{gone}\n")  # as Tune notes it
    assert _reason(SimpleNamespace(error_file=tmp_path / "error.txt", num_failures=1)) == (
        f"{LOST} 1 times"
    )
