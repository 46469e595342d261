"""What Ray's own pages and the metrics port tell of a search, asked over HTTP while it runs."""

import json
import re
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from search.config import load_config
from search.failures import LOST, kind
from search.ledger import Trial, opened, read
from search.progress import Silence
from search.run import run_search
from search.run_folder import RunFolder
from search.telemetry import Telemetry
from spaces import scheme

CONFIG = load_config(
    overrides=[
        "data={name: digits, student_images: 40, train_images: 120, validation_images: 60}",
        "teacher={width: 4, epochs: 1}",
        "student.recipe={repeats: 16, batch_size: 8}",
        "search={trials: 3, probe_epochs: 2, warm_start: [none, cutmix, mixup]}",
        "promotion={top: 1, epochs: 1, seeds: 1}",
        "cluster.concurrent_trials=1",
    ]
)


class Pages:
    """The dashboard, the metrics port and the logs of a local cluster."""

    def __init__(self, dashboard: str, folder: Path) -> None:
        self._dashboard, self._folder = f"http://{dashboard}", folder
        [node] = ray.nodes()
        self._metrics = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def samples(self) -> dict[str, float]:
        """Ours by name and tags, those left out that Ray adds."""
        found = {}
        for line in _get(self._metrics).splitlines():
            if match := re.match(r"ray_augury_(\w+)\{(.*)\} (\S+)$", line):
                tags = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                own = [tags[k] for k in ("state", "reason", "objective") if k in tags]
                found[" ".join((match[1], tags["run"], tags["stage"], *own))] = float(match[3])
        return found

    def actors(self) -> dict[str, int]:
        """Class and name of those that have begun, and their processes."""
        content = json.loads(_get(f"{self._dashboard}/logical/actors"))
        actors = content["data"]["actors"].values()
        return {f"{a['actorClass']}: {a['reprName']}": a["pid"] for a in actors if a["reprName"]}

    def logs(self) -> str:
        logs = self._folder.glob("session_latest/logs/worker-*.out")
        return "".join(log.read_text() for log in logs)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def titles(processes: dict[str, int]) -> set[str]:
    """What lists of processes show, the dashboard's among them."""
    paths = [Path(f"/proc/{pid}/cmdline") for pid in processes.values()]
    return {path.read_text().strip(" \0") for path in paths if path.exists()}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    patch = pytest.MonkeyPatch()
    patch.setenv("AUGURY_CACHE", str(tmp_path_factory.mktemp("cache")))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        context = ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=True,
            dashboard_port=0,
            log_to_driver=False,
            _temp_dir=folder,
            _system_config={"metrics_report_interval_ms": 300},
        )
        yield Pages(context.dashboard_url, Path(folder))
        ray.shutdown()
    patch.undo()


def wait_for(pages: Pages, **wanted: float) -> dict[str, float]:
    """The first samples that hold what is `wanted`."""
    for _ in range(300):
        samples = pages.samples()
        if all(samples.get(name) == value for name, value in wanted.items()):
            return samples
        time.sleep(0.1)
    raise AssertionError(f"{wanted} never came, but {samples}")


def test_a_search_is_told_in_figures_and_its_trials_by_their_policies(pages, tmp_path):
    folder = RunFolder(tmp_path / "told")
    seen: list[dict[str, float]] = []
    actors: set[str] = set()
    processes: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            seen.append(pages.samples())
            now = pages.actors()
            actors.update(now)
            processes.update(titles(now))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        run_search(CONFIG, folder, Silence())
        last = wait_for(
            pages, **{"trials told promotion running": 0, "epochs_total told promotion": 2}
        )
    finally:
        over.set()
        looking.join()
    probes = read(folder.ledger).of("probe")
    after = next(s for s in seen if s.get("trials told probe finished") == 3)
    best = {name: [t.figures[name] for t in probes] for name in ("score", "validation_accuracy")}
    assert after["best_objective told probe score"] == min(best["score"])
    assert after["best_validation_accuracy told probe"] == max(best["validation_accuracy"])
    assert after["epochs_total told probe"] == 6
    assert any(s.get("trials told probe running") == 1 for s in seen)
    assert max(s.get("images_per_second told probe", 0) for s in seen) > 1
    assert last["trials told promotion finished"] == 2
    assert last["images_per_second told promotion"] == 0
    assert last["gpu_memory_bytes told promotion"] == 0
    assert actors == {"ProbeTrial: students of told, one after the other"}
    assert {"ray::none, seed 0", "ray::cutmix, seed 0", "ray::mixup, seed 0"} <= processes
    assert "cutmix, seed 0\n" in pages.logs()


def test_failures_are_counted_by_their_kind(pages, tmp_path):
    """And what went before this process began is counted in states alone."""
    (tmp_path / "hard").mkdir()
    with opened(tmp_path / "hard" / "trials.jsonl") as ledger:
        ledger.sitting({"augury": "1"})
        begun = [ledger.began(Trial(str(n), "probe", scheme("none"), 0)) for n in range(4)]
        ledger.ended(begun[0], "failed", f"{LOST} 4 times")
        telemetry = Telemetry(ledger, "probe", "score", "hard")
        for trial, failure in zip(
            begun[1:], ["DivergedError: no", "OutOfMemoryError: no", None], strict=True
        ):
            tunes = SimpleNamespace(config={"trial": trial.id})  # the part that callbacks look at
            telemetry.on_trial_start(0, [], tunes)
            if failure is not None:
                ledger.ended(trial, "failed", failure)
                telemetry.on_trial_complete(0, [], tunes)
        samples = wait_for(pages, **{"trials hard probe failed": 3, "trials hard probe running": 1})
        counted = {k: v for k, v in samples.items() if k.startswith("failures_total hard")}
        assert counted == {
            "failures_total hard probe diverged": 1,
            "failures_total hard probe memory": 1,
        }
        telemetry.on_trial_error(0, [], tunes)  # it is left to be begun once more
        wait_for(pages, **{"trials hard probe failed": 3, "trials hard probe running": 0})


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (f"{LOST} 4 times", "lost"),
        ("DivergedError: the loss exploded in epoch 2", "diverged"),
        ("score was not a finite number", "diverged"),
        ("OutOfMemoryError: CUDA out of memory. (conv.py, line 3)", "memory"),
        ("RuntimeError: MPS backend out of memory (conv.py, line 3)", "memory"),
        ("UserError: layers of an unknown kind", "user"),
        ("ValueError: UserError: is not what it begins with (mine.py, line 3)", "other"),
    ],
)
def test_kinds_of_failures(failure, expected):
    assert kind(failure) == expected
