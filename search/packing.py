"""How many trials share a device, where the config says `auto`: measured before the first probe.

On a node of the cluster 1, 2, 4, ... students are trained at once for some seconds, as probes are.
More of them share the device as long as all together gain by it and its memory holds them. What was
found is kept in the run, so that a run that is gone on with on such a cluster does not measure.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from search.config import AUTO, SearchConfig
from search.prober import Prober, Reading
from search.run_folder import write_text
from search.trainable import Shared
from spaces import scheme
from spaces.errors import UserError

WORTH = 1.1  # times what fewer do, all together: where less is gained, fewer it is
FILLED = 0.9  # of the memory, at most: other policies may take a little more than the one measured
SECONDS = 3.0  # of training, for every number of students
PATIENCE = 60.0  # seconds, until a node is free to be measured
LIMIT = 900.0  # seconds, for a student to be made; networks may have to be compiled
CRUMB = 0.001  # of a resource that a node alone has
POLICY = "rand_augment"  # costs what policies cost: two operations for every image


@dataclass(frozen=True)
class Measured:
    """What `at_once` students did: images per second of all, and bytes of memory, `used` of all
    that is `there`."""

    at_once: int
    images_per_second: float
    used: float
    there: float

    @property
    def fitting(self) -> int:
        """How many students the memory holds, if others are like these."""
        return math.floor(FILLED * self.there * self.at_once / self.used)


def measured(measure: Callable[[int], Measured | None], most: int) -> tuple[Measured, ...]:
    """What 1, 2, 4, ... students did, up to `most`: the last number is the one to choose.

    `measure` gives None where so many could not be trained; empty where not even one could.
    """
    kept: list[Measured] = []
    at_once = 1
    while (found := measure(at_once)) is not None:
        if kept and (found.at_once > found.fitting or _gain(kept[-1], found) < WORTH):
            break
        kept.append(found)
        at_once = min(2 * at_once, most, found.fitting)
        if at_once <= found.at_once:
            break
    return tuple(kept)


def _gain(fewer: Measured, more: Measured) -> float:
    return more.images_per_second / fewer.images_per_second


def fraction(share: float) -> float:
    """`share` rounded down to what Ray counts with: three times 0.3333 is no more than one."""
    return math.floor(share * 10_000) / 10_000


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its CPUs, GPUs of one kind, bytes of memory, and the name of the
    resource that it alone has."""

    name: str
    cpus: float
    gpus: float
    gpu: str
    memory: float

    @property
    def kind(self) -> str:
        gpus = f", {self.gpus:g} GPU {self.gpu}".rstrip() if self.gpus else ""
        return f"{self.cpus:g} CPU{gpus}"

    @property
    def devices(self) -> float:
        """How many things there are to share: GPUs, or else all CPUs as one."""
        return max(self.gpus, 1)

    @property
    def device(self) -> str:
        return "a GPU" if self.gpus else f"{self.cpus:g} CPUs"

    def cpus_of(self, share: float) -> float:
        """The CPUs that come with a share of a device, whole ones where there is one."""
        cpus = self.cpus / self.devices * share
        return float(math.floor(cpus)) if cpus >= 1 else fraction(cpus)


def nodes() -> list[Node]:
    """The nodes that have CPUs, the smallest first."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = [
        Node(
            name=next(name for name in has if name.startswith("node:") and "__" not in name),
            cpus=has["CPU"],
            gpus=has.get("GPU", 0),
            gpu=" ".join(n.partition(":")[2] for n in has if n.startswith("accelerator_type:")),
            memory=has.get("memory", math.inf),
        )
        for has in alive
        if has.get("CPU", 0) > 0
    ]
    return sorted(found, key=lambda node: (node.cpus, node.memory))


@dataclass(frozen=True)
class Packing:
    """The resources of a trial, which a config `asked` for on nodes of these `kinds`; what is told
    of it, what was measured, by kind of node, and for how many trials a device."""

    asked: dict[str, Any]
    kinds: list[str]
    cpus_per_trial: float
    gpus_per_trial: float
    told: str
    measured: dict[str, list[dict[str, float]]]
    wanted: int

    def serves(self, wanted: int) -> bool:
        """Whether as many a device would come out the same: no more than were measured for, or
        fewer were chosen than these were."""
        chosen = min((steps[-1]["at_once"] for steps in self.measured.values()), default=0)
        return wanted <= self.wanted or chosen < self.wanted

    def applied(self, config: SearchConfig) -> SearchConfig:
        """`config` with numbers."""
        numbers = {"cpus_per_trial": self.cpus_per_trial, "gpus_per_trial": self.gpus_per_trial}
        cluster = config.cluster.model_copy(update=numbers)
        return config.model_copy(update={"cluster": cluster})


def packing_for(config: SearchConfig, shared: Shared, file: Path) -> Packing | None:
    """What replaces `auto` in `config` on this cluster, as `file` has it or else as measured; None
    where there is nothing to replace. Raises UserError where `file` is broken."""
    asked = config.cluster.model_dump(
        include={"cpus_per_trial", "gpus_per_trial", "concurrent_trials"}
    )
    if AUTO not in asked.values():
        return None
    there = nodes()
    kinds = sorted({node.kind for node in there})
    wanted = _wanted(config, there)
    for known in reversed(_kept(file)):
        if (known.asked, known.kinds) == (asked, kinds) and known.serves(wanted):
            return known
    cpus, gpus, told, curves = _found(config, shared, there)
    steps = {kind: [asdict(step) for step in curve.steps] for kind, curve in curves.items()}
    return Packing(asked, kinds, cpus, gpus, f"packing: {told}", steps, wanted)


def keep(packing: Packing, file: Path) -> None:
    """Adds it to `file`, unless it is there, or something that was to be measured was not."""
    known = _kept(file)
    if packing not in known and all(packing.measured.values()):
        content = [asdict(one) for one in (*known, packing)]
        write_text(file, json.dumps(content, indent=2) + "\n")


def _kept(file: Path) -> list[Packing]:
    try:
        return [Packing(**one) for one in json.loads(file.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError):
        raise UserError(f"{file}: cannot be read: remove it, and it is measured again") from None


@dataclass(frozen=True)
class Curve:
    """What was measured on `node`, or why nothing was."""

    node: Node
    steps: tuple[Measured, ...]
    failure: str

    @property
    def at_once(self) -> int:
        return self.steps[-1].at_once if self.steps else 1

    def __str__(self) -> str:
        device = self.node.device
        if not self.steps:
            return f"could not be measured ({self.failure}): a probe has {device} to itself"
        one, last, number = self.steps[0], self.steps[-1], self.at_once
        each = (
            f"{last.used / number / 2**30:.1f} GiB and "
            f"{last.images_per_second / number:,.0f} images/s"
        )
        if number == 1:
            return f"a probe has {device} to itself ({each})"
        return (
            f"{number} probes share {device} ({each} each, {_gain(one, last):.1f} times one alone)"
        )


def _found(
    config: SearchConfig, shared: Shared, there: Sequence[Node]
) -> tuple[float, float, str, Mapping[str, Curve]]:
    """CPUs and GPUs of a trial, what is told of them, and what was measured, by kind of node.
    Raises UserError where there is no node to measure on."""
    cpus, gpus = config.cluster.cpus_per_trial, config.cluster.gpus_per_trial
    with_gpu = {node.kind: node for node in there if node.gpus and gpus != 0}
    if not there or (gpus not in (AUTO, 0) and not with_gpu):
        raise UserError(
            "cluster: auto measures on a node that is there, and none is that a trial could run "
            "on: give numbers for cluster.cpus_per_trial and cluster.gpus_per_trial"
        )
    if not isinstance(gpus, str) and with_gpu:
        share = min(node.cpus_of(gpus) for node in with_gpu.values())
        return share, gpus, f"{share:g} CPUs for a probe, by its share of the GPUs", {}
    if not isinstance(cpus, str) and not with_gpu:
        return cpus, 0.0, "no node has a GPU, probes use CPUs", {}
    # A trial asks for the same everywhere: what suits the smallest node, or the one whose GPU
    # bears the fewest.
    smallest = replace(there[0], gpus=0, gpu="")
    kinds = with_gpu or {smallest.kind: smallest}
    wanted = _wanted(config, there)
    curves = {kind: _curve(node, wanted, config, shared) for kind, node in kinds.items()}
    fewest = min(curves.values(), key=lambda curve: curve.at_once)
    share = 1 / fewest.at_once
    least = min(node.cpus_of(share) for node in kinds.values())
    cpus = config.cluster.resources.get("CPU", least)
    return cpus, fraction(share) if with_gpu else 0.0, str(fewest), curves


def _wanted(config: SearchConfig, there: Sequence[Node]) -> int:
    """How many trials each device of the cluster would have if all ran at once that may, and as
    many as there are CPUs for."""
    gpus = sum(node.gpus for node in there) if config.cluster.gpus_per_trial != 0 else 0
    trials = config.search.trials
    at_once = min(config.cluster.concurrent_trials or trials, trials)
    holds = max((_holds(node, config) for node in there), default=1)
    return min(math.ceil(at_once / max(gpus or len(there), 1)), holds)


def _holds(node: Node, config: SearchConfig) -> int:
    """How many trials a device of `node` has CPUs for."""
    return max(math.floor(node.cpus / node.devices / config.cluster.resources.get("CPU", 1)), 1)


def _curve(node: Node, wanted: int, config: SearchConfig, shared: Shared) -> Curve:
    """What is measured on `node` for so many trials a device, or as many as it has CPUs for."""
    most = min(_holds(node, config), wanted)
    with _reserved(node) as place:
        if place is None:
            return Curve(node, (), f"no such node was free for {PATIENCE:g} s")
        bench = Bench(node, place, config, shared)
        return Curve(node, measured(bench.measure, most), bench.failure)


@contextmanager
def _reserved(node: Node) -> Iterator[PlacementGroupSchedulingStrategy | None]:
    """A place for actors on one device of `node`, which nothing else uses; None where something
    does, and goes on."""
    bundle = {"CPU": node.cpus / node.devices, node.name: CRUMB} | ({"GPU": 1} if node.gpus else {})
    group = placement_group([bundle])
    try:
        free = group.wait(PATIENCE)
        yield PlacementGroupSchedulingStrategy(group, 0) if free else None
    finally:
        remove_placement_group(group)


class Bench:
    """Students in actors in one `place` on `node`; `failure` says why the last were not trained."""

    def __init__(
        self,
        node: Node,
        place: PlacementGroupSchedulingStrategy,
        config: SearchConfig,
        shared: Shared,
    ) -> None:
        self._node, self._shared = node, shared
        self._cpus = config.cluster.resources.get("CPU")
        # What they ask for in their place is only a name for it.
        crumb: Any = {"num_cpus": 0, "num_gpus": CRUMB if node.gpus else 0}
        self._actor: Any = ray.remote(Prober).options(scheduling_strategy=place, **crumb)
        policy = scheme(POLICY).on(config.data.base)
        self._trial = {"policy": policy.model_dump_json(), "seed": config.search.seed}
        self._probers: list[Any] = []
        self._pace = 0.0  # images per second
        self.failure = ""

    def measure(self, at_once: int) -> Measured | None:
        """What so many students do at once; None where they cannot."""
        try:
            return self._measure(at_once)
        except RayError as error:  # for want of memory, say
            cause = getattr(error, "cause", error)
            self.failure = f"{type(cause).__name__}: {cause}".splitlines()[0]
            return None

    def _measure(self, at_once: int) -> Measured:
        node = self._node
        cpus = self._cpus or node.cpus_of(1 / at_once)
        trial = self._trial | {"cpus": cpus, "gpus": node.gpus}
        new = [self._actor.remote(trial, self._shared) for _ in range(at_once - len(self._probers))]
        self._probers += new
        if not self._pace:
            self._pace = ray.get(new[0].pace.remote(), timeout=LIMIT)
        ray.get([prober.warm_up.remote(self._pace) for prober in new], timeout=LIMIT)
        trained = [prober.timed.remote(max(int(cpus), 1), SECONDS) for prober in self._probers]
        return _together(ray.get(trained, timeout=LIMIT), node)


def _together(readings: Sequence[Reading], node: Node) -> Measured:
    """By the memory that is scarcer: the GPU's, or that of the node for all of its devices."""
    used = sum(reading.memory for reading in readings) * node.devices
    memories = [(used, node.memory)]
    if node.gpus:
        memories.append((max(r.gpu_used for r in readings), readings[0].gpu_there))
    used, there = max(memories, key=lambda memory: memory[0] / memory[1])
    speed = sum(reading.images_per_second for reading in readings)
    return Measured(len(readings), speed, used, there)
