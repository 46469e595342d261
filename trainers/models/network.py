"""Networks by name: those of the papers, those of torchvision and timm, and the user's own."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from torch import nn

from spaces.errors import UserError, by_nearness, unknown_name
from spaces.frozen import Frozen
from trainers.datasets import ImageSplits, as_tensor
from trainers.models.image_size import require_fitting
from trainers.models.resnet import CifarResNet
from trainers.models.vgg import STAGES, CifarVGG
from trainers.models.weights import load_weights
from trainers.users_own import users_module, users_own

RESNETS = {f"resnet{depth}": depth for depth in (8, 20, 32, 56)}
VGGS = {f"vgg{depth}": depth for depth in STAGES}
OWN = (*RESNETS, *VGGS)

Width = Annotated[int, Field(ge=4, le=256, description="channels of the first stage")]
WeightsFile = Annotated[
    Path | None,
    Field(strict=False, description=".pt, .pth or .safetensors with a state_dict of the network"),
]


def known_form(name: str) -> str:
    """`name`, if a network can be called like that; raises ValueError with the forms there are.

    Whether torchvision, timm or the user's module know it is found when it is built, since asking
    costs their import.
    """
    library, colon, rest = name.partition(":")
    if not colon and name not in OWN:
        raise ValueError(
            f"{unknown_name('network', name, OWN)}, or torchvision:NAME, timm:NAME or "
            "PACKAGE.MODULE:FACTORY"
        )
    if colon and not (library and rest):
        raise ValueError(f"network {name!r}: give torchvision:NAME, timm:NAME or MODULE:FACTORY")
    return name


NetworkName = Annotated[
    str,
    AfterValidator(known_form),
    Field(
        description="resnet8, 20, 32, 56, vgg8, 13 (CIFAR's), torchvision:NAME, timm:NAME, or "
        "PACKAGE.MODULE:FACTORY, which is called with num_classes"
    ),
]


class Network(Frozen):
    """A network and where its weights come from. A plain text is short for `{name: text}`."""

    name: NetworkName
    width: Annotated[
        Width | None, Field(description="of CIFAR's networks; null is as in their papers")
    ] = None
    weights: WeightsFile = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, content: Any) -> Any:
        return {"name": content} if isinstance(content, str) else content

    @model_validator(mode="after")
    def _has_a_width(self) -> "Network":
        if self.width is not None and self.name not in OWN:
            raise ValueError(f"width: {self.name} has its own, leave width out")
        return self


def build_network(name: str, num_classes: int, *, width: int | None = None, seed: int) -> nn.Module:
    """A fresh network whose weights depend on `seed` alone; nothing is ever downloaded.

    It maps normalised images float32 (N, 3, H, W) to logits (N, `num_classes`). `width` is for
    CIFAR's networks. Raises UserError for a name that its library or module does not know.
    """
    make = _factory(name, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make(num_classes)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"network {name!r}: the factory must return a torch.nn.Module, "
            f"got a {type(model).__name__}"
        )
    return model


def network_for(network: Network, splits: ImageSplits, *, seed: int) -> nn.Module:
    """`network` for the classes of `splits`, with the weights of its file or fresh by `seed`.

    Raises UserError where the images are too small for it, and where the file does not fit.
    """
    model = build_network(network.name, splits.num_classes, width=network.width, seed=seed)
    require_fitting(model, network.name, splits.image_size, splits.num_classes)
    if network.weights is not None:
        load_weights(model, network.weights, splits.num_classes)
    return model


def network_from_arrays(
    arrays: Mapping[str, np.ndarray], network: Network, num_classes: int
) -> nn.Module:
    """`network` with the state in `arrays`, without a copy: they may be read-only views."""
    model = build_network(network.name, num_classes, width=network.width, seed=0)
    model.load_state_dict({k: as_tensor(v) for k, v in arrays.items()}, assign=True)
    return model


def made_of(name: str) -> str:
    """What beside its name decides how a network is built: the version or the code it is from."""
    library, _, rest = name.partition(":")
    if library in ("torchvision", "timm") and rest:
        return version(library)
    if rest:
        file = users_module("network", name).__file__
        content = Path(file).read_bytes() if file else b""
        return hashlib.blake2b(content, digest_size=8).hexdigest()
    return ""


def _factory(name: str, width: int | None) -> Callable[[int], Any]:
    """The function from a number of classes to the network called `name`."""
    chosen = {} if width is None else {"width": width}
    if name in RESNETS:
        return lambda classes: CifarResNet(RESNETS[name], classes, **chosen)
    if name in VGGS:
        return lambda classes: CifarVGG(VGGS[name], classes, **chosen)
    try:
        library, _, rest = known_form(name).partition(":")
    except ValueError as error:
        raise UserError(str(error)) from None
    if library == "torchvision":
        return _of_torchvision(rest)
    if library == "timm":
        return _of_timm(rest)
    return _of_the_user(name)


def _of_torchvision(name: str) -> Callable[[int], nn.Module]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown_there("torchvision", name, known)
    # These two have further outputs in training, and warn unless told how to initialise.
    quiet = {"googlenet", "inception_v3"}
    further = {"aux_logits": False, "init_weights": True} if name in quiet else {}
    return lambda classes: models.get_model(name, weights=None, num_classes=classes, **further)


def _of_timm(name: str) -> Callable[[int], nn.Module]:
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError(
            f"network 'timm:{name}' needs the package timm: pip install 'augury[timm]'"
        ) from None
    known = timm.list_models()
    # Only names of architectures: timm would fetch what names a place on a hub.
    if name.partition(".")[0] not in known or ":" in name:
        raise _unknown_there("timm", name, known)
    return lambda classes: timm.create_model(name, pretrained=False, num_classes=classes)


def _of_the_user(name: str) -> Callable[[int], Any]:
    found, attribute = users_own("network", name), name.partition(":")[2]
    if not callable(found):
        raise UserError(f"network {name!r}: {attribute!r} cannot be called with num_classes")
    try:
        inspect.signature(found).bind(num_classes=2)
    except TypeError as error:
        raise UserError(
            f"network {name!r}: {attribute!r} cannot be called with num_classes alone: {error}"
        ) from None
    return lambda classes: found(num_classes=classes)


def _unknown_there(library: str, name: str, known: list[str]) -> UserError:
    nearest = ", ".join(by_nearness(name, known)[:5])
    return UserError(f"{library} {version(library)} has no classifier {name!r}, nearest: {nearest}")
