"""A search that is killed, gone on with, extended or refused, on a real Ray cluster."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from object_store import served
from ray import tune

from search.config import load_config
from search.errors import SearchFailedError
from search.ledger import LOST, opened
from search.progress import Silence
from search.proposals import Proposals
from search.results import FAILED, FINISHED, Row
from search.run import promote_again, resume_search, run_search
from search.run_folder import RunFolder
from search.stages import SearchResult
from search.storage import StorageError, Store
from search.table import read_parquet
from search.trainable import ProbeTrial, Shared
from search.trials import Interrupted
from search.warm_start import WarmStart, warm_start
from spaces import PolicySpace, UserError, scheme
from trainers.datasets import load_splits
from trainers.datasets.config import CROP_AND_FLIP
from trainers.models import build_network
from trainers.teacher import frozen

pytestmark = pytest.mark.usefixtures("cluster")
SERIAL = load_config(
    overrides=[
        "data.student_images=40",
        "teacher={width: 4, epochs: 4}",
        "student.recipe.repeats=2",
        "student.recipe.batch_size=8",
        "search.warm_start=[none, cutmix, mixup]",
        "search.trials=9",
        "search.probe_epochs=2",
        "search.random_trials=4",
        "promotion={top: 2, epochs: 2, seeds: 1}",
        "cluster.concurrent_trials=1",
    ]
)
OF_THE_CLOCK = {"seconds", "images_per_second", "attempts"}


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """The table without what a clock measured and how often a trial was begun."""
    table = read_parquet(folder.policies).to_pylist()
    return [{k: v for k, v in row.items() if k not in OF_THE_CLOCK} for row in table]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return run_search(SERIAL, RunFolder(tmp_path_factory.mktemp("runs") / "whole"), Silence())


def signalled(
    happened: Callable[[], bool], signals: list[int], folder: Path, *words: str
) -> tuple[int, str]:
    """Runs `augury` in a process of its own, sends it `signals` once something has happened, and
    returns its exit code and what it said."""
    command = [Path(sys.executable).parent / "augury", *words]
    err = folder / "stderr"
    with err.open("w") as told, subprocess.Popen(command, cwd=folder, stderr=told) as process:
        while process.poll() is None:
            if happened():
                for number in signals:
                    process.send_signal(number)
                break
            time.sleep(0.01)
        code = process.wait()
    return code, err.read_text()


def told(said: str, folder: Path) -> Callable[[], bool]:
    """Whether the ledger of `run` in the folder has a line with `said`."""
    ledger = folder / "run" / "trials.jsonl"
    return lambda: ledger.exists() and said in ledger.read_text()


def test_killed_and_extended_the_same_search_to_the_last_digit(cluster, whole, tmp_path):
    """Killed in the fifth of seven trials; nine in all are what nine at once are."""
    seven = SERIAL.search.model_copy(update={"trials": 7})
    config = SERIAL.model_copy(update={"search": seven})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    words = ["search", "config.yaml", "--run", "run", "--set", f"cluster.address={cluster}"]
    happened = told('"epoch", "trial": "00004"', tmp_path)
    code, _ = signalled(happened, [signal.SIGKILL], tmp_path, *words)
    assert code == -signal.SIGKILL
    folder = RunFolder.open(tmp_path / "run")
    with opened(folder.ledger) as ledger:
        assert [t.id for t in ledger.trials.values() if not t.status] == ["00004"]
    before = folder.ledger.read_text()
    again = resume_search(folder, Silence(), trials=9)
    assert rows(folder) == rows(whole.folder)
    tables = [read_parquet(f.policies).schema.metadata for f in (folder, whole.folder)]
    assert tables[0].keys() == tables[1].keys()
    assert again.verdict == whole.verdict
    assert folder.best_policy.read_text() == whole.folder.best_policy.read_text()
    after = folder.ledger.read_text()
    assert after.startswith(before)
    records = [json.loads(line) for line in after.splitlines()]
    began = [record["trial"] for record in records if record["event"] == "began"]
    assert [trial for trial in set(began) if began.count(trial) > 1] == ["00004"]
    resume_search(folder, Silence())
    left = folder.ledger.read_text().removeprefix(after)
    events = [json.loads(line)["event"] for line in left.splitlines()]
    assert events == ["sitting", "stage", "stage", "concluded"]  # there was nothing to do
    assert rows(folder) == rows(whole.folder)
    with pytest.raises(UserError, match="--trials 3: the run has 9 already"):
        resume_search(folder, Silence(), trials=3)
    more = promote_again(folder, Silence(), top=1, seeds=2)
    began = folder.ledger.read_text().removeprefix(after).count('"began"')
    assert began == len(more.candidates)  # the second seed of each; the first was there
    assert {len(candidate.runs) for candidate in more.candidates} == {2}
    promoted = {row.policy.identity: len(row.full_length) for row in more.rows if row.full_length}
    of_now = {candidate.policy.identity: 2 for candidate in more.candidates}
    of_then = {c.policy.identity: 1 for c in whole.candidates}
    assert promoted == of_then | of_now
    assert len(promoted) > len(of_now)  # the table keeps what fell behind, the verdict does not
    assert load_config(folder.config).promotion.seeds == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_is_gentle_and_a_second_signal_at_once_and_nothing_is_lost(
    cluster, whole, tmp_path
):
    """Two signals of different numbers: of one number the second may be one with the first."""
    (tmp_path / "config.yaml").write_text(SERIAL.to_yaml())
    words = ["search", "config.yaml", "--run", "run", "--set", f"cluster.address={cluster}"]
    folder = RunFolder(tmp_path / "run")
    gently = [signal.SIGTERM]
    happened = told('"epoch", "trial": "00001"', tmp_path)
    code, said = signalled(happened, gently, tmp_path, *words)
    assert (code, "Traceback" in said) == (130, False), said
    assert f"stopped; go on with: augury resume {folder.path}" in said
    with opened(folder.ledger) as ledger:
        assert ledger.trials["00001"].epochs.keys() == {1, 2}  # which was let end
        assert "00002" not in ledger.trials
    assert len(rows(folder)) == 2
    at_once = [signal.SIGINT, signal.SIGTERM]
    happened = told('"epoch", "trial": "00004"', tmp_path)
    code, said = signalled(happened, at_once, tmp_path, "resume", "run")
    assert (code, "Traceback" in said) == (130, False), said
    assert f"stopped; go on with: augury resume {folder.path}" in said
    with opened(folder.ledger) as ledger:
        assert [t.id for t in ledger.trials.values() if not t.status] == ["00004"]
        assert ledger.trials["00004"].epochs.keys() == {1}  # and the second was not waited for
    assert len(rows(folder)) == 4
    resume_search(folder, Silence())
    assert rows(folder) == rows(whole.folder)


def test_a_lost_connection_to_ray_is_no_fault_of_the_disk(whole, tmp_path):
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "lonely"))

    class Lonely(Silence):
        def stage(self, text: str, *_: Any) -> None:
            if text == "probes":
                raise ConnectionError("the cluster has gone")

    with pytest.raises(SearchFailedError, match="connection to Ray was lost: the cluster has gone"):
        resume_search(folder, Lonely())


def lose(path: Path, *lost: str) -> None:
    """Writes a ledger anew as it is where the workers of the trials `lost` were killed too
    often."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["event"] == "ended" and record["trial"] in lost:
            record |= {"status": FAILED, "failure": f"{LOST} 4 times", "test_accuracy": None}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_what_was_lost_is_tried_again_and_comes_out_as_it_would_have(whole, tmp_path):
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "lossy"))
    probe = whole.rows[-1].trial_id  # which is not promoted
    with opened(folder.ledger) as ledger:
        student = ledger.of("promotion")[0].id
    lose(folder.ledger, probe, student)
    before = folder.ledger.read_text()
    promote_again(folder, Silence())
    with opened(folder.ledger) as ledger:
        assert ledger.trials[student].status == FINISHED
        assert ledger.trials[probe].status == FAILED  # promotion does not probe
    assert FAILED in {row["status"] for row in rows(folder)}
    resume_search(folder, Silence())
    assert rows(folder) == rows(whole.folder)
    assert json.loads(folder.verdict.read_text()) == json.loads(whole.folder.verdict.read_text())
    after = folder.ledger.read_text().removeprefix(before)
    began = [r["trial"] for r in map(json.loads, after.splitlines()) if r["event"] == "began"]
    assert sorted(began) == sorted([probe, student])


def test_the_run_has_its_own_teacher(whole, tmp_path):
    weights = tmp_path / "t.pt"
    weights.write_bytes(whole.folder.teacher.read_bytes())
    config = load_config(
        overrides=[
            "data.student_images=40",
            f"teacher={{width: 4, weights: {weights}}}",
            "search={trials: 1, probe_epochs: 1, warm_start: [none]}",
            "promotion={top: 1, epochs: 1, seeds: 1}",
            "student.recipe={repeats: 2, batch_size: 8}",
        ]
    )
    folder = RunFolder(tmp_path / "run")
    run_search(config, folder, Silence())
    weights.unlink()
    resume_search(folder, Silence(), trials=2)
    assert len(rows(folder)) == 2
    assert {row["status"] for row in rows(folder)} == {FINISHED}


def test_at_an_address_the_same_search_though_it_goes_on_with_nothing_at_hand(whole):
    class Stopping(Silence):
        def trial_ended(self, row: Row) -> None:
            if row.trial_id == "00003":
                signal.raise_signal(signal.SIGINT)

    with served() as bucket:
        address = bucket.address("runs/x")
        with pytest.raises(Interrupted):
            run_search(SERIAL, RunFolder.at(address), Stopping())
        assert b"augury resume goes on with it" in (Store(address).get("report.html") or b"")
        folder = RunFolder.open(address)
        again = resume_search(folder, Silence())
        assert rows(folder) == rows(whole.folder)
        assert again.verdict == whole.verdict
        assert rows(RunFolder.open(address)) == rows(whole.folder)
        kept = RunFolder.open(address).kept_students("*.pt")
        assert [s.name for s in kept] == [s.name for s in whole.folder.kept_students("*.pt")]
        assert {name.split("/")[0] for name in Store(address).listing()} == {
            *("config.yaml", "run.json", "teacher.pt", "trials", "students"),
            *("policies.parquet", "verdict.json", "best_policy.json"),
            *("report.html", "report", "tensorboard"),
        }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_an_address_and_gone_on_with_from_another_machine(cluster, whole, tmp_path):
    (tmp_path / "config.yaml").write_text(SERIAL.to_yaml())
    with served() as bucket:
        address, line = bucket.address("runs/x"), b'"epoch", "trial": "00004"'
        words = ["search", "config.yaml", "--run", address]
        words += ["--set", f"cluster.address={cluster}"]
        happened = lambda: any(line in found for found in [*bucket.values()])  # noqa: E731
        code, _ = signalled(happened, [signal.SIGKILL], tmp_path, *words)
        assert code == -signal.SIGKILL
        (tmp_path / "empty").mkdir()
        elsewhere = {"AUGURY_CACHE": str(tmp_path / "empty"), "TMPDIR": str(tmp_path / "empty")}
        done = subprocess.run(
            [Path(sys.executable).parent / "augury", "resume", address],
            cwd=tmp_path / "empty",
            env=os.environ | elsewhere,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "waiting for a sign of life" in done.stderr
        assert "runs/x/best_policy.json" in done.stdout
        assert list((tmp_path / "empty").iterdir()) == []
        folder = RunFolder.open(address)
        assert rows(folder) == rows(whole.folder)
        folder.refresh()
        records = [json.loads(line) for line in folder.ledger.read_text().splitlines()]
        began = [record["trial"] for record in records if record["event"] == "began"]
        assert [trial for trial in set(began) if began.count(trial) > 1] == ["00004"]


def test_a_config_that_no_longer_matches_is_refused_with_the_difference(whole):
    folder = whole.folder
    before = folder.config.read_text()
    try:
        folder.config.write_text(before.replace("objective: score", "objective: kd_gap"))
        with pytest.raises(UserError, match=r"search\.objective is 'kd_gap', was 'score'"):
            resume_search(folder, Silence())
    finally:
        folder.config.write_text(before)


def test_a_run_that_was_moved_goes_on_without_its_teacher_but_not_without_its_ledger(
    whole, tmp_path
):
    """A kill may come before the teacher is kept; nothing is changed by who is refused."""
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "moved"))
    folder.teacher.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as if the disk were full
    try:
        with pytest.raises(UserError, match="written, the disk may be full"):
            resume_search(folder, Silence())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resume_search(folder, Silence())
    assert rows(folder) == rows(whole.folder)
    assert folder.teacher.exists()
    config = folder.config.read_text()

    class Told(Silence):
        def stage(self, text: str, *_: Any) -> None:
            raise AssertionError(f"{text} came before it was said that the folder is taken")

    for command in (resume_search, promote_again):
        with opened(folder.ledger), pytest.raises(UserError, match="another process"):
            command(folder, Told())
    assert folder.config.read_text() == config
    folder.config.write_text(config.replace("gpu_hours: null", "gpu_hours: 1"))
    with pytest.raises(UserError, match=r"search\.budget\.gpu_hours: probes use no GPU"):
        resume_search(folder, Silence())
    folder.ledger.unlink()
    with pytest.raises(UserError, match="without it nothing is known of the run"):
        promote_again(folder, Silence(), top=1)


def test_a_run_that_came_there_meanwhile_is_not_gone_on_with_by_a_search(whole, tmp_path):
    """As where two that begin in the same second have the name of that second."""
    folder = RunFolder(tmp_path / "run")

    class Late(Silence):
        def stage(self, text: str, *_: Any) -> None:
            if text.startswith("teacher"):
                shutil.copytree(whole.folder.path, folder.path)

    another = SERIAL.search.model_copy(update={"objective": "kd_gap"})
    with pytest.raises(UserError, match="holds a run already: name another folder with --run"):
        run_search(SERIAL.model_copy(update={"search": another}), folder, Late())
    for file in ("trials.jsonl", "config.yaml", "run.json", "policies.parquet"):
        assert (folder.path / file).read_bytes() == (whole.folder.path / file).read_bytes()


def test_a_folder_does_not_hide_a_scheme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("none").mkdir()
    first = [policy.identity for policy in warm_start(SERIAL, {}).first]
    assert first == [scheme(name).identity for name in SERIAL.search.warm_start]
    search = SERIAL.search.model_copy(update={"warm_start": ("x" * 300,)})
    with pytest.raises(UserError, match=r"search\.warm_start: .*File name too long"):
        warm_start(SERIAL.model_copy(update={"search": search}), {})


def test_a_search_begins_with_the_winners_of_another_and_what_is_known_of_the_rest(whole):
    made_by = whole.folder.read_marker()

    def begun(**search: Any) -> WarmStart:
        names = (str(whole.folder.path), "cutout")
        config = SERIAL.search.model_copy(update={"warm_start": names, **search})
        start = warm_start(SERIAL.model_copy(update={"search": config}), made_by)
        assert WarmStart.from_json(start.as_json()) == start
        return start

    start = begun()
    identities = [row.policy.identity for row in whole.rows if row.status == FINISHED]
    first = [policy.identity for policy in start.first]
    assert first == [*identities[:5], scheme("cutout").identity]
    assert [policy.identity for policy, _ in start.known] == identities[5:]
    assert [told["score"] for _, told in start.known] == [
        r.figures["score"] for r in whole.rows[5:]
    ]
    with_known = Proposals(SERIAL.search, PolicySpace().including(start.first), start)
    asked = [with_known.propose().policy.identity for _ in range(12)]
    assert asked[:6] == first
    assert not set(asked) & set(identities[5:])
    assert begun(probe_epochs=3).known == ()  # longer probes have other figures
    cropped = SERIAL.data.model_copy(update={"base": CROP_AND_FLIP})
    search = SERIAL.search.model_copy(update={"warm_start": (str(whole.folder.path),)})
    on_another_base = SERIAL.model_copy(update={"data": cropped, "search": search})
    assert warm_start(on_another_base, made_by).known == ()


def test_a_student_goes_on_from_its_checkpoint(tmp_path):
    """In another actor, which tells the last epoch again; one made otherwise begins anew."""
    splits = load_splits(SERIAL.data)
    teacher = frozen(build_network("resnet8", 10, width=4, seed=0))
    shared = Shared.put(SERIAL, splits, teacher, checkpoints=tmp_path)
    trial = {"policy": scheme("cutmix").to_json(), "seed": 0, "cpus": 1, "gpus": 0}

    def told(shared: Shared, epochs: int) -> list[dict[str, float]]:
        actor = tune.with_parameters(ProbeTrial, shared=shared, epochs=4)(config=trial)
        reports = [actor.train() for _ in range(epochs)]
        return [{k: r[k] for k in ("epoch", "score", "validation_loss")} for r in reports]

    first = told(shared, 2)
    rest = told(shared, 3)
    assert [r["epoch"] for r in first + rest] == [1, 2, 2, 3, 4]
    assert rest[0] == first[1]
    anew = told(replace(shared, origin="another"), 4)
    assert anew == first + rest[1:]
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(StorageError, match=rf"{kept}: is no checkpoint that can be read: remove"):
        told(shared, 1)
