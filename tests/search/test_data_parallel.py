"""Students that two workers of Ray Train distil together, on two CPUs."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from search.cluster import connected, lacking
from search.config import ClusterConfig, SearchConfig, load_config
from search.ledger import Ledger, Trial, opened
from search.progress import Silence
from search.promote import Promoted, promote
from search.results import FAILED, FINISHED
from search.run import resume_search, run_search
from search.run_folder import RunFolder
from search.trainable import Shared
from spaces import UserError, scheme
from trainers.datasets import load_splits
from trainers.models import build_network
from trainers.student import StudentTrainer
from trainers.teacher import frozen

pytestmark = pytest.mark.usefixtures("cluster")
CONFIG = load_config(
    overrides=[
        "data.student_images=40",
        "teacher.width=4",
        "student.network=ranks:network",
        "student.recipe={repeats: 1, batch_size: 8}",
        "student.quantization={weight_bits: 8, activation_bits: 8}",
        "promotion={epochs: 3, seeds: 1, workers: 2}",
    ]
)
TEACHER = frozen(build_network("resnet8", 10, width=4, seed=0))


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Ray Train asks every two seconds whether its workers are done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        yield


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(RunFolder(tmp_path).ledger) as ledger:
        yield ledger


@pytest.fixture
def plan(cluster: str) -> Path:
    """The file with the fault to come."""
    import faulty  # in tests/fixtures, which the cluster has on its path

    return faulty.plan()


def promoted(ledger: Ledger, plan: Path, faults: Sequence[str]) -> Promoted:
    """Trains a student after another, each of which meets the next fault."""
    left = iter([*faults, ""])
    plan.write_text(next(left))
    folder = RunFolder(ledger.path.parent)
    names = ["none", "cutmix", "mixup"][: len(faults)]
    return promote(
        CONFIG,
        Shared.put(CONFIG, load_splits(CONFIG.data), TEACHER, checkpoints=folder.checkpoints),
        [(scheme(name), "candidate") for name in names],
        ledger=ledger,
        folder=folder,
        ended=lambda trial: plan.write_text(next(left)) and None,
    )


def by_one_process(config: SearchConfig) -> StudentTrainer:
    """The first student, by a process that takes batches in two parts."""
    seed = config.search.seed + 1
    return StudentTrainer(
        teacher=TEACHER,
        splits=load_splits(config.data),
        policy=scheme("none"),
        quantization=config.student.quantization,
        recipe=config.student.recipe.model_copy(update={"accumulate": 2}),
        epochs=config.promotion.epochs,
        seed=seed,
        network=build_network("ranks:network", 10, seed=seed),
    )


def test_two_workers_train_what_one_process_trains_in_two_parts(ledger, plan):
    found = promoted(ledger, plan, [""])
    (student,) = ledger.of("promotion")
    assert (student.status, student.attempts) == (FINISHED, 1)
    require_as_alone(ledger, student, found)


@pytest.mark.slow
def test_a_worker_that_is_killed_and_a_student_that_diverges(ledger, plan):
    found = promoted(ledger, plan, ["kill", "nan"])
    student, diverged = ledger.of("promotion")
    assert (student.status, student.attempts, diverged.attempts) == (FINISHED, 2, 1)
    assert diverged.status == FAILED
    assert diverged.failure == "DivergedError: the loss is no longer a finite number in epoch 1"
    assert found.failures == (f"{scheme('cutmix')}: {diverged.failure}",)
    require_as_alone(ledger, student, found)


def require_as_alone(ledger: Ledger, student: Trial, found: Promoted) -> None:
    """The student, and the file of it, are what one process makes of it."""
    assert student.places["device"] == "2 x cpu"
    assert student.places["batch_size"] == 8

    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    told = [line["figures"]["epoch"] for line in lines if line["event"] == "epoch"]
    assert told == [1, 2, 3]  # the first was not trained again
    alone = by_one_process(CONFIG)
    for report in alone.epochs():
        figures = student.epochs[report.epoch]
        expected = {name: value for name, value in report.as_dict().items() if name in figures}
        del expected["images_per_second"]
        assert {name: figures[name] for name in expected} == pytest.approx(expected, 1e-3, 1e-4)
    (run,) = found.candidates[0].runs
    assert run.test_accuracy == pytest.approx(alone.test_accuracy(), abs=0.01)

    folder = RunFolder(ledger.path.parent)
    (kept,) = folder.students.iterdir()
    assert kept.name == f"{scheme('none').identity}-1-3-student-2workers.pt"
    for name, tensor in torch.load(kept)["student"].items():
        torch.testing.assert_close(tensor, alone.outcome.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_workers_that_the_machine_never_has_room_for_are_refused():
    local, elsewhere = ClusterConfig(), ClusterConfig(address="auto", gpus_per_trial=0.5)
    assert lacking(local, workers=2) is None
    three = "promotion.workers: 3 workers of 1 CPU each train a student together, this machine has "
    with pytest.raises(UserError, match=f"^{three}room for 2$"), connected(local, workers=3):
        pass
    # None shares a GPU with another one.
    assert elsewhere.of_workers(2).gpus_per_trial == 1
    assert elsewhere.of_workers(1) == elsewhere


def test_a_loss_that_remembers_images_is_refused_to_several_workers():
    overrides = ["student.recipe.loss.features=[{name: crd}]", "promotion.workers=2"]
    with pytest.raises(UserError, match="the loss crd remembers images"):
        load_config(overrides=overrides)


@pytest.mark.slow
def test_what_befalls_one_worker_ends_them_all(ledger, plan):
    promoted(ledger, plan, ["raise", "memory"])
    wrong, halved = ledger.of("promotion")
    assert wrong.failure.startswith("TypeError: a mistake of the user's (ranks.py, line ")
    assert (halved.status, halved.places["batch_size"]) == (FINISHED, 4)
    assert [wrong.attempts, halved.attempts] == [1, 1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stopped_and_killed_the_workers_go_on_to_the_last_bit(cluster, tmp_path):
    """Ctrl-C after the first epoch, and the search is killed after the next one that it tells."""
    overrides = [
        "data.student_images=40",
        "teacher={width: 4, epochs: 2}",
        "student.recipe={repeats: 2, batch_size: 8}",
        "search={trials: 1, probe_epochs: 1, warm_start: [none]}",
        "promotion={top: 1, epochs: 4, seeds: 1, workers: 2}",
    ]
    config, folder = load_config(overrides=overrides), RunFolder(tmp_path / "run")
    undisturbed = run_search(config, RunFolder(tmp_path / "undisturbed"), Silence())
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    first = ["search", "config.yaml", "--run", "run", "--set", f"cluster.address={cluster}"]
    assert disturbed(signal.SIGINT, 1, folder, *first) == 130
    epochs = len(promoted_epochs(folder))
    assert 1 <= epochs < 4  # the one that it was in is not lost
    assert disturbed(signal.SIGKILL, epochs + 1, folder, "resume", "run") == -signal.SIGKILL
    result = resume_search(folder, Silence())
    assert promoted_epochs(folder) == [1, 2, 3, 4]
    assert result.verdict == undisturbed.verdict
    (kept,), (other,) = (list(r.folder.students.iterdir()) for r in (result, undisturbed))
    assert kept.name == other.name
    tensors, expected = torch.load(kept)["student"], torch.load(other)["student"]
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert not folder.checkpoints.exists()


def disturbed(number: int, epochs: int, folder: RunFolder, *words: str) -> int:
    """Runs `augury`, sends it a signal once so many epochs of promotion are told, and waits."""
    # A test run that was started in the background ignores Ctrl-C, and so would its children.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    code += "from search.cli import main; main()"
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, cwd=folder.path.parent, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(promoted_epochs(folder)) < epochs:
            time.sleep(0.01)
        process.send_signal(number)
    return process.returncode


def promoted_epochs(folder: RunFolder) -> list[int]:
    """The epochs of promotion, in the order in which they are told."""
    text = folder.ledger.read_text() if folder.ledger.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [
        int(line["figures"]["epoch"])
        for line in lines
        if line["event"] == "epoch" and line["trial"].endswith("2workers")
    ]
