"""What is told beside the ledger: event files, byte by byte, and MLflow's own file store."""

import shutil
import struct
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from search.cli import main
from search.config import LoggingConfig, load_config
from search.event_files import EventFiles
from search.explore import explore
from search.ledger import opened, read
from search.loggers import loggers_for
from search.run import run_search
from search.run_folder import RunFolder
from search.trainable import Shared
from search.warm_start import warm_start
from spaces import PolicySpace
from trainers.datasets import load_splits
from trainers.models import build_network
from trainers.teacher import frozen

# Ray imports it at the start of every search where it is installed: seconds, so it is not in dev.
has_mlflow = pytest.mark.skipif(
    find_spec("mlflow") is None, reason="MLflow is not installed: pip install '.[mlflow]'"
)
TINY = [
    "data={student_images: 40, train_images: 120}",
    "teacher={width: 4, epochs: 1}",
    "student={network: 'faulty:network', recipe: {repeats: 1, batch_size: 8}}",
    "search={trials: 3, probe_epochs: 2, warm_start: [none, cutmix, rand_augment]}",
    "promotion={top: 1, epochs: 2, seeds: 1}",
    "cluster.concurrent_trials=1",
]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of the one event file in `folder` by their tags, its sums checked."""
    [path] = folder.iterdir()
    assert "tfevents" in path.name  # by which TensorBoard finds it
    content, points = path.read_bytes(), {}
    while content:
        [length] = struct.unpack("<Q", content[:8])
        record = content[12 : 12 + length]
        sums = content[8:12], content[12 + length : 16 + length]
        assert sums == tuple(struct.pack("<I", masked_crc32c(t)) for t in (content[:8], record))
        event = Event.FromString(record)
        for value in event.summary.value:
            points.setdefault(value.tag, []).append((event.step, value.simple_value))
        content = content[16 + length :]
    return points


@pytest.fixture(scope="module")
def faults(cluster):
    import faulty

    return faulty.plan()


@pytest.fixture(scope="module")
def run(faults, tmp_path_factory) -> RunFolder:
    """A search whose second probe diverges in its second epoch."""
    faults.write_text("none nan none")
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "told")
    store = folder.path.with_name("store")
    told = [f"logging.mlflow={store}"] if find_spec("mlflow") else []
    run_search(load_config(overrides=[*TINY, *told]), folder)
    return folder


def tracked(folder: RunFolder) -> dict[str, Any]:
    """What MLflow has of a run, by the ids of trials."""
    import mlflow

    client = mlflow.MlflowClient(str(folder.path.with_name("store")))
    experiment = client.get_experiment_by_name(folder.path.name)
    return {run.data.params["trial"]: run for run in client.search_runs([experiment.experiment_id])}


@has_mlflow
def test_mlflow_has_every_trial_by_its_policy_with_its_parameters_and_epochs(run):
    ledger, runs = read(run.ledger), tracked(run)
    assert runs.keys() == ledger.trials.keys()
    assert {trial.status for trial in ledger.trials.values()} == {"finished", "failed"}
    for trial in ledger.trials.values():
        told = runs[trial.id]
        assert told.info.run_name == f"{trial.policy}, {trial.id}"
        assert told.info.status == trial.status.upper()
        assert told.data.params["stage"] == trial.stage
        assert told.data.params.items() >= {k: str(v) for k, v in trial.params.items()}.items()
        assert told.data.tags["augury.run"] == str(run)
        assert trial.figures.items() <= told.data.metrics.items()
        assert told.data.metrics.get("failed", 0) == (trial.status == "failed")
        if trial.stage == "promotion":
            assert told.data.metrics["test_accuracy"] == trial.test_accuracy
    import mlflow

    client = mlflow.MlflowClient(str(run.path.with_name("store")))
    for trial in ledger.trials.values():
        points = client.get_metric_history(runs[trial.id].info.run_id, "training_loss")
        assert {point.step: point.value for point in points} == trial.values("training_loss")


def test_tensorboard_has_a_point_per_probe_and_a_curve_per_student(run):
    ledger = read(run.ledger)
    fine, _, other = ledger.of("probe")
    probes = curves(run.tensorboard / "probes")
    for figure in fine.figures:
        expected = [(0, fine.figures[figure]), (2, other.figures[figure])]
        assert probes[figure] == [(step, pytest.approx(value)) for step, value in expected]
    students = {path.name: curves(path) for path in (run.tensorboard / "students").iterdir()}
    assert students.keys() == {f"{t.policy} {t.id}" for t in ledger.of("promotion")}
    for trial in ledger.of("promotion"):
        told = students[f"{trial.policy} {trial.id}"]
        losses = trial.values("validation_loss").items()
        assert told["validation_loss"] == [(epoch, pytest.approx(loss)) for epoch, loss in losses]
        assert told["test_accuracy"] == [(2, pytest.approx(trial.test_accuracy))]
        assert "_hparams_/session_start_info" in told


def test_event_files_begin_with_all_that_the_ledger_knows(told_run, tmp_path):
    ledger, published = read(told_run.ledger), []
    for _ in range(2):  # what another sitting left is not told twice
        files = EventFiles(tmp_path, ledger, published.append)
        files.began(ledger.trials["00038"])  # which has not ended
        student = ledger.of("promotion")[2]  # whose policy an attacker named
        files.began(student)
        files.close()
        ended = [t for t in ledger.of("probe") if t.status in ("finished", "stopped")]
        steps = [step for step, _ in curves(tmp_path / "probes")["score"]]
        assert steps == [int(trial.id) for trial in ended]
        [of_student] = (tmp_path / "students").iterdir()
        assert of_student.name.endswith(student.id)
        assert len(curves(of_student)["validation_loss"]) == 3
    assert len(published) == 4


@has_mlflow
def test_a_tracker_that_is_lost_costs_no_trial_and_is_told_of_once(faults, tmp_path):
    faults.write_text("")
    config = load_config(overrides=[*TINY, "search.trials=2", "search.probe_epochs=1"])
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    store, notes = tmp_path / "store", []
    told = LoggingConfig(mlflow=str(store))
    splits, start = load_splits(config.data), warm_start(config, {})
    teacher = frozen(build_network("resnet8", 10, width=4, seed=0))
    shared = Shared.put(config, splits, teacher, checkpoints=folder.checkpoints)
    space = PolicySpace().including(start.first)

    def ended(trial):
        if trial.id == "00000":
            shutil.rmtree(store)
            store.touch()

    with opened(folder.ledger) as ledger:
        loggers = loggers_for(told, ledger, folder, notes.append)
        explore(
            config, shared, space, start,
            ledger=ledger, folder=folder.tune, ended=ended, loggers=loggers,
        )  # fmt: skip
        assert [trial.status for trial in ledger.trials.values()] == ["finished"] * 2
    assert len(notes) == 1
    assert notes[0].startswith("mlflow is told no more in this sitting: ")
    assert len(curves(folder.tensorboard / "probes")["score"]) == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("wandb=augury", "logging.wandb needs the package wandb: pip install 'augury[wandb]'"),
        pytest.param("mlflow=nosuch://x", "logging.mlflow: ", marks=has_mlflow),
        pytest.param("mlflow=http://127.0.0.1:9", "logging.mlflow: ", marks=has_mlflow),
    ],
)
def test_a_tracker_that_cannot_be_told_is_a_sentence_before_anything_is_written(
    given, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # also where it is installed
    words = ["search", "--run", str(tmp_path / "run"), "--set", f"logging.{given}"]
    monkeypatch.setattr("sys.argv", ["augury", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    [line] = [text for text in capsys.readouterr().err.splitlines() if text.strip()]
    assert sentence in line
    assert not list(tmp_path.iterdir())
