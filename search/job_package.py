"""What a job takes to the cluster: Augury's code as it is here, the config, and small files of the
user's that the config names. Data and weights never: they are looked up on the cluster.
"""

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
    cannot be read, and where all of it is too large.
    """
    _require_paths_of_the_cluster(config)
    stage_code(folder)
    try:
        _ship_module(config.teacher.network, folder)
        _ship_module(config.student.quantization.quantizer, folder)
        if config.student.network is not None:
            _ship_module(config.student.network.name, folder)
        warm_start = tuple(
            _ship_policy(name, folder, number)
            for number, name in enumerate(config.search.warm_start)
        )
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be shipped: {error.strerror}") from None
    search = config.search.model_copy(update={"warm_start": warm_start})
    cluster = config.cluster.model_copy(update={"address": "auto"})
    there = config.model_copy(update={"search": search, "cluster": cluster})
    write_text(folder / CONFIG, there.to_yaml())
    _require_small(folder)


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


def _ship_module(network: str, folder: Path) -> None:
    """Takes the module of the user's own `MODULE:FACTORY` along where it lies in this folder; one
    that is installed has to be installed on the cluster, too."""
    module, colon, _ = network.partition(":")
    first = module.partition(".")[0]
    if not colon or first in (*ROOMS, "torchvision", "timm") or not re.fullmatch(r"\w+", first):
        return
    if Path(first).is_dir():
        shutil.copytree(first, folder / first, ignore=EXCLUDED, dirs_exist_ok=True)
    elif Path(f"{first}.py").is_file():
        shutil.copy(f"{first}.py", folder)


def _ship_policy(name: str, folder: Path, number: int) -> str:
    """Takes a policy file or an earlier run along; returns the name that it has there.

    Names of schemes, addresses and what only the cluster has stay as they are.
    """
    from spaces.schemes import SCHEMES, policy_called  # torch, which other commands do without

    path = Path(name)
    if name.partition("+")[0] in SCHEMES or "://" in name:
        return name
    if path.is_absolute() and not path.exists():
        return name
    there = Path(SHIPPED) / f"{number}-{path.name}"
    if path.is_dir():
        run = RunFolder.open(path)
        (folder / there).mkdir(parents=True)
        for file in (run.marker, run.policies):  # all that a search begins with
            shutil.copy(file, folder / there)
        return str(there)
    policy = policy_called(name)
    if not path.is_file():
        return name  # rand_augment(N,M)
    (folder / there).parent.mkdir(exist_ok=True)
    policy.save(folder / there)
    return str(there)


def _require_small(folder: Path) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > LIMIT_MIB * 2**20:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"{total / 2**20:,.1f} MiB would be uploaded, at most {LIMIT_MIB}: the largest file is "
            f"{largest.relative_to(folder)} with {sizes[largest] / 2**20:,.1f} MiB; put it on the "
            "cluster's storage and name its path there"
        )
