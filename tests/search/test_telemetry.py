"""What Ray's own pages and the metrics port tell of a search, asked over HTTP while it runs."""

import json
import re
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from search.config import load_config
from search.progress import Silence
from search.run import run_search
from search.run_folder import RunFolder

CONFIG = load_config(
    overrides=[
        "data.student_images=40",
        "teacher={width: 4, epochs: 2}",
        "student.recipe={repeats: 4, batch_size: 8}",
        "search={trials: 3, probe_epochs: 2, warm_start: [none, cutmix, mixup]}",
        "promotion={top: 1, epochs: 1, seeds: 2}",
        "cluster.concurrent_trials=1",
    ]
)


class Pages:
    """The dashboard and the metrics port of a local cluster."""

    def __init__(self, dashboard: str) -> None:
        self._dashboard = f"http://{dashboard}"
        [node] = ray.nodes()
        self._node = node["NodeID"]
        self._metrics = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def samples(self) -> dict[str, float]:
        """Ours by name and tags, those left out that Ray adds."""
        found = {}
        for line in _get(self._metrics).splitlines():
            if match := re.match(r"ray_augury_(\w+)\{(.*)\} (\S+)$", line):
                tags = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                own = {k: tags[k] for k in ("stage", "state", "reason", "objective") if k in tags}
                found[" ".join((match[1], tags["run"], *own.values()))] = float(match[3])
        return found

    def actors(self) -> list[str]:
        content = json.loads(_get(f"{self._dashboard}/logical/actors"))
        Path("/tmp/exp-m/actors.json").write_text(json.dumps(content))
        actors = content["data"]["actors"].values()
        return [a["reprName"] for a in actors if a["actorClass"].endswith("ProbeTrial")]

    def processes(self) -> str:
        content = json.loads(_get(f"{self._dashboard}/nodes/{self._node}"))
        return json.dumps(content["data"]["detail"]["workers"])


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


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
            _system_config={"metrics_report_interval_ms": 500},
        )
        yield Pages(context.dashboard_url)
        ray.shutdown()
    patch.undo()


def test_a_search_is_told_in_figures_and_its_trials_by_their_policies(pages, tmp_path):
    folder = RunFolder(tmp_path / "told")
    seen: list[tuple[dict[str, float], list[str], str]] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            seen.append((pages.samples(), pages.actors(), pages.processes()))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        run_search(CONFIG, folder, Silence())
        time.sleep(1)
    finally:
        over.set()
        looking.join()
    Path("/tmp/exp-m/seen.json").write_text(json.dumps(seen))
