"""What a trial costs beside its training, and whether that grows with the number of trials.

    python benchmarks/overhead.py [--trials 200] [--searcher tpe]

Probes of one epoch on 40 small images run one at a time in a reused actor, with the ledger, the
checkpoints and the table as in any search. From the ledger: the overhead of a trial is the time
from its beginning to the beginning of the next, without the time in which batches were trained. So
it has the sampler, Tune, building and calibrating the student, validation, and every file that is
written. The last line is one JSON object: `median_overhead_s` over all trials but the first, whose
actor must start, and `last_over_first`, the mean overhead of the last hundred over that of the
first. `driver_cpu_s` and `driver_last_over_first` are the same for the processor time of the driver
alone, which other work on the machine does not touch.
"""

import argparse
import json
import tempfile
import time
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import ray
from augmentation import processor

from search.config import SearchConfig, load_config
from search.ledger import opened
from search.progress import Silence
from search.results import Row
from search.run_folder import RunFolder
from search.stages import Stages
from search.trainable import Shared
from search.warm_start import warm_start
from spaces import PolicySpace
from trainers.datasets import load_splits
from trainers.models import build_network
from trainers.teacher import frozen

IMAGES = 40


class DriverTime(Silence):
    """Notes how much processor time the driver has had at the end of every trial."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def trial_ended(self, row: Row) -> None:
        self.seconds.append(time.process_time())

    def per_trial(self) -> list[float]:
        """Seconds between the ends of trials that follow each other."""
        return [after - before for before, after in pairwise(self.seconds)]


def probes(config: SearchConfig, folder: RunFolder, driver: DriverTime) -> list[dict[str, Any]]:
    """The ledger of the probes of `config`, which are all run, line by line."""
    splits = load_splits(config.data)
    teacher = frozen(build_network("resnet8", 10, width=4, seed=0))
    start = warm_start(config, {})
    space = PolicySpace(config.search.space).including(start.first)
    folder.path.mkdir()
    with opened(folder.ledger) as ledger:
        ledger.sitting({"augury": version("augury")})
        shared = Shared.put(config, splits, teacher, checkpoints=folder.checkpoints)
        stages = Stages(config, folder, ledger, {}, driver, images=splits.train)
        stages.probe(shared, space, start)
    return [json.loads(line) for line in folder.ledger.read_text().splitlines()]


def overheads(records: list[dict[str, Any]]) -> list[float]:
    """Seconds of every trial but the last, whose end the ledger does not know."""
    began = [record["at"] for record in records if record["event"] == "began"]
    training = [
        IMAGES / record["figures"]["images_per_second"]
        for record in records
        if record["event"] == "epoch"
    ]
    pairs = zip(began, began[1:], training, strict=False)
    return [after - before - trained for before, after, trained in pairs]


def last_over_first(seconds: list[float]) -> float:
    return round(fmean(seconds[-100:]) / fmean(seconds[:100]), 3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--searcher", default="tpe")
    options = parser.parse_args()
    if options.trials < 200:
        parser.error("--trials: a first and a last hundred take 200 or more")
    config = load_config(
        overrides=[
            f"data.student_images={IMAGES}",
            "teacher.width=4",
            "student.recipe.repeats=1",
            "search.probe_epochs=1",
            f"search.trials={options.trials}",
            f"search.searcher={options.searcher}",
            "cluster.concurrent_trials=1",
        ]
    )
    began = time.perf_counter()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        driver = DriverTime()
        found = overheads(probes(config, RunFolder(Path(folder) / "run"), driver))[1:]
    ray.shutdown()
    figures = {
        "median_overhead_s": round(median(found), 4),
        "last_over_first": last_over_first(found),
        "driver_cpu_s": round(median(driver.per_trial()), 4),
        "driver_last_over_first": last_over_first(driver.per_trial()),
        "trials": options.trials,
        "searcher": options.searcher,
        "seconds": round(time.perf_counter() - began, 1),
        "machine": processor(),
        "ray": version("ray"),
        "optuna": version("optuna"),
        "date": str(date.today()),
    }
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    name = f"overhead_{options.searcher}_{options.trials}.json"
    (results / name).write_text(json.dumps(figures) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
