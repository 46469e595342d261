"""What a job takes to the cluster: Augury's code as it is here, the config, and small files of the
user's that the config names. Data and weights never: they are looked up on the cluster.
"""

import os
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from search.run_folder import RunFolder, write_text
from spaces.errors import UserError

if TYPE_CHECKING:
    from search.config import SearchConfig

ROOMS = ("search", "trainers", "spaces")
CONFIG = "config.yaml"
SHIPPED = "shipped"  # the folder of policies and earlier runs
LIMIT_MIB = 16  # code and policies are far below; what is above was not meant to be uploaded
# Of folders that are shipped as a whole.
EXCLUDED = shutil.ignore_patterns(
    "__pycache__", ".*", "*.pt", "*.pth", "*.safetensors", "*.onnx", "*.parquet", "*.npy", "*.npz"
)


def stage_code(folder: Path) -> None:
    """Copies Augury as it is here into `folder`."""
    root = Path(__file__).parent.parent
    for room in ROOMS:
        shutil.copytree(root / room, folder / room, ignore=EXCLUDED)
    # Code asks for its version, also where Augury is not installed or is another one.
    own = distribution("augury")
    metadata = folder / f"augury-{own.version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    write_text(metadata, own.read_text("METADATA") or "")


def stage(config: "SearchConfig", folder: Path) -> None:
    """Fills `folder` with what a search of `config` needs on the cluster.

    Raises UserError where the config names data or weights by a path of this machine, where a file
    cannot be read, and where all of it is too large, before anything is copied.
    """
    _require_paths_of_the_cluster(config)
    files = Files()
    try:
        for module in _modules(config):
            _ship_module(module, files)
        named = enumerate(config.search.warm_start)
        warm_start = tuple(_ship_policy(name, files, number) for number, name in named)
        for name, path in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be shipped: {error.strerror}") from None
    stage_code(folder)
    search = config.search.model_copy(update={"warm_start": warm_start})
    cluster = config.cluster.model_copy(update={"address": "auto"})
    there = config.model_copy(update={"search": search, "cluster": cluster})
    write_text(folder / CONFIG, there.to_yaml())


class Files(dict[str, Path]):
    """The user's own files that go along, by the names that they have there; raises UserError as
    soon as they are too large, however many more there are."""

    def __init__(self) -> None:
        super().__init__()
        self._total = 0
        self._largest: tuple[int, Path] = (0, Path())

    def __setitem__(self, name: str, path: Path) -> None:
        size = path.stat().st_size
        self._total += size
        self._largest = max(self._largest, (size, path))
        if self._total > LIMIT_MIB * 2**20:
            size, path = self._largest
            raise UserError(
                f"more than {LIMIT_MIB} MiB would be uploaded, {path} with {size / 2**20:,.1f} MiB "
                "among it: put what is large on the cluster's storage and name its path there"
            )
        super().__setitem__(name, path)


def _require_paths_of_the_cluster(config: "SearchConfig") -> None:
    for key, path in _paths(config):
        if not path.is_absolute():
            raise UserError(
                f"{key}: {path} would be looked for on the cluster: data and weights are not "
                "uploaded, give the absolute path that they have there"
            )


def _paths(part: Any, above: str = "") -> Iterator[tuple[str, Path]]:
    """Every path in a config, by its key."""
    if isinstance(part, Path):
        yield above, part
    elif isinstance(part, BaseModel):
        for name in type(part).model_fields:
            yield from _paths(getattr(part, name), f"{above}.{name}" if above else name)


def _modules(config: "SearchConfig") -> Iterator[str]:
    yield config.teacher.network
    yield config.student.quantization.quantizer
    if config.student.network is not None:
        yield config.student.network.name
    for loss in config.student.recipe.loss.features:
        yield loss.name


def _ship_module(named: str, files: Files) -> None:
    """Takes the module of the user's own `MODULE:NAME` along where it lies in this folder; one
    that is installed has to be installed on the cluster, too."""
    module, colon, _ = named.partition(":")
    first = module.partition(".")[0]
    if not colon or first in (*ROOMS, "torchvision", "timm") or not re.fullmatch(r"\w+", first):
        return
    for above, folders, names in os.walk(first):  # links to folders are left out
        folders[:] = set(folders) - EXCLUDED(above, folders)
        for name in set(names) - EXCLUDED(above, names):
            files[f"{above}/{name}"] = Path(above, name)
    if not Path(first).is_dir() and Path(f"{first}.py").is_file():
        files[f"{first}.py"] = Path(f"{first}.py")


def _ship_policy(name: str, files: Files, number: int) -> str:
    """Takes a policy file or an earlier run along; returns the name that it has there.

    Names of schemes, addresses and what only the cluster has stay as they are.
    """
    from spaces.schemes import SCHEMES, policy_called  # torch, which other commands do without

    path = Path(name)
    if name.partition("+")[0] in SCHEMES or "://" in name:
        return name
    if path.is_absolute() and not path.exists():
        return name
    there = f"{SHIPPED}/{number}-{path.name}"
    if path.is_dir():
        run = RunFolder.open(path)
        for file in (run.marker, run.policies):  # all that a search begins with
            files[f"{there}/{file.name}"] = file
        return there
    if path.is_file():  # before it is read
        files[there] = path
    policy_called(name)
    return there if path.is_file() else name  # rand_augment(N,M)
