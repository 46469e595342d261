"""The Ray cluster that trials run on: one on this machine, or the user's."""

import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

# Read by Ray when it is imported or when a run starts. The new console ignores verbosity; Tune need
# not snapshot what the ledger keeps; a trial needs no TensorBoard and CSV files too; Ctrl-C must
# end the search here instead of making Tune return early as if it were done.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")

import ray
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.config import ClusterConfig
from search.reachability import unanswered
from search.storage import Folder, StorageError, Store, reached
from spaces.errors import UserError


@contextmanager
def connected(config: ClusterConfig, workers: int = 1) -> Iterator[str | None]:
    """A connection to the cluster of `config`; yields the dashboard's address where it has one.

    A local cluster lives as long as the connection. A connection that exists already is used and
    left open. Raises UserError where a cluster cannot be reached, or a local one could never hold
    a single trial, or a student of several `workers`.
    """
    ours = not ray.is_initialized()
    if ours:
        _connect(config)
    try:
        if config.address == "local" and (wanting := lacking(config, workers)):
            raise UserError(wanting)
        url = ray._private.worker.get_dashboard_url()
        yield f"http://{url}" if url else None
    finally:
        if ours:
            ray.shutdown()


def _connect(config: ClusterConfig) -> None:
    local = config.address == "local"
    _require_answer(config.address)
    try:
        with _on_the_loopback() if local else nullcontext():
            ray.init(
                address=config.address,
                include_dashboard=config.dashboard if local else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError) as error:
        raise UserError(f"cluster.address: no Ray cluster at {config.address!r}: {error}") from None


@contextmanager
def _on_the_loopback() -> Iterator[None]:
    """A cluster that begins here listens on 127.0.0.1 alone, as Ray's do on macOS; elsewhere Ray
    takes the machine's address, even where told this one, and its ports are open to the network."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _require_answer(address: str) -> None:
    """Ray itself would go on knocking for minutes."""
    if address.startswith("ray://"):
        raise UserError(
            f"cluster.address: {address} is Ray Client's port, through which a search cannot be "
            "driven: use augury submit, or HOST:PORT of the cluster on one of its machines"
        )
    if silence := unanswered(address):
        raise UserError(f"cluster.address: nothing answers at {address!r}: {silence}")


def lacking(config: ClusterConfig, workers: int = 1) -> str | None:
    """What a trial, or a student of several `workers`, asks for and the nodes do not have, in a
    sentence; None where there is nothing.

    On this machine a trial would wait for ever; a cluster elsewhere may grow when asked.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    whose = "this machine" if config.address == "local" else "the largest node, for now,"
    for resource, wanted in config.resources.items():
        most = max((resources.get(resource, 0) for resources in nodes), default=0)
        if wanted > most:
            key = f"cluster.{resource.lower()}s_per_trial"
            return f"{key}: a trial asks for {wanted:g} {resource}, {whose} has {most:g}"
    needs = config.of_workers(workers).resources
    room = sum(fitting(resources, needs) for resources in nodes)
    if workers > room:
        each = " and ".join(f"{needs[name]:g} {name}" for name in needs if needs[name])
        where = "this machine" if config.address == "local" else "the cluster, for now,"
        return (
            f"promotion.workers: {workers} workers of {each} each train a student together, "
            f"{where} has room for {room}"
        )
    return None


def concurrent_trials(config: ClusterConfig) -> int:
    """How many trials may run at once: as configured, else as many as fit now, node by node."""
    if config.concurrent_trials is not None:
        return config.concurrent_trials
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(sum(fitting(node, config.resources) for node in nodes), 1)


def fitting(node: Mapping[str, float], trial: Mapping[str, float]) -> int:
    """How many times a node has what a trial asks for, a CPU where that is not known yet; parts of
    a GPU are of one and the same."""
    fit = node.get("CPU", 0) / trial.get("CPU", 1)
    gpus = trial.get("GPU", 0)
    if 0 < gpus <= 1:
        fit = min(fit, node.get("GPU", 0) * math.floor(1 / gpus))
    elif gpus > 1:
        fit = min(fit, node.get("GPU", 0) / gpus)
    return math.floor(fit)


def require_storage(place: Path | Store, students: int, bytes_each: int) -> None:
    """Raises UserError where a folder has no room for the checkpoints of that many students, or
    where a node that may train one cannot read and write the place of the run."""
    if isinstance(place, Path):
        _require_room(place, students, bytes_each)
    files = reached(place)
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in nodes if node["NodeID"] != here]
    token = f".seen-{secrets.token_hex(4)}"
    try:
        with files.writing(token) as temporary:
            temporary.write_bytes(b"seen")
        tried = [_on(node["NodeID"]).remote(files, token) for node in others]
        found = ray.get(tried)
    finally:
        files.remove(token)
    for node, reason in zip(others, found, strict=True):
        if reason is not None:
            raise UserError(
                f"{place}: the node {node['NodeManagerAddress']} cannot read and write it "
                f"({reason}): put the run where all nodes can, by --run FOLDER that they share, "
                "or --run s3://BUCKET/NAME or gs://BUCKET/NAME with credentials on every node"
            )


def _require_room(folder: Path, students: int, bytes_each: int) -> None:
    free, needed = shutil.disk_usage(folder).free, students * bytes_each
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**20:,.0f} MiB are free, the checkpoints of {students} students "
            f"at a time take about {needed / 2**20:,.0f} MiB: make room, or use --run elsewhere"
        )


def _on(node: str) -> Any:
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_reason).options(num_cpus=0, scheduling_strategy=where)


def _reason(files: Folder | Store, token: str) -> str | None:
    """Why this node cannot read the file `token` and write beside it; None where it can."""
    try:
        file = files.reading(token)
        if file is None:
            return "what was written there is not seen"
        file.close()
        ours = f"{token}-{secrets.token_hex(4)}"
        with files.writing(ours) as temporary:
            temporary.write_bytes(b"seen")
        files.remove(ours)
    except StorageError as error:
        return error.reason
    except OSError as error:
        return error.strerror or str(error)
    return None
