"""Which layers of a network a loss looks at, and one forward pass that keeps what they give."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spaces.errors import UserError, unknown_name
from trainers.contexts import eval_mode


class Tap(NamedTuple):
    """A place in a network: what the module of that name takes or gives."""

    module: str
    side: Literal["input", "output"] = "output"


class Answer(NamedTuple):
    """What a network says of a batch: logits (N, K), and the features (N, ...) at its taps."""

    logits: Tensor
    features: dict[Tap, Tensor]


def watched(model: nn.Module, inputs: Float[Tensor, "n ..."], taps: Iterable[Tap]) -> Answer:
    """One forward pass of `model`. No hook outlives it, so the network stays what it was.

    Of a module that is called several times the last call counts. Raises UserError for a module
    that `model` does not have or does not call.
    """
    features: dict[Tap, Tensor] = {}
    handles = []
    taps = tuple(taps)
    try:
        for tap in taps:
            handles.append(_module(model, tap.module).register_forward_hook(_keep(features, tap)))
        logits = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for tap in taps:
        if tap not in features:
            raise UserError(
                f"loss.features: the network has a layer {tap.module!r} but passes no tensor "
                "through it, name one that it calls"
            )
    return Answer(logits, features)


def stage_taps(model: nn.Module, inputs: Float[Tensor, "n c h w"]) -> list[Tap]:
    """The output of the last block at each resolution, largest first, without pooled 1x1 maps."""
    stages: dict[tuple[int, ...], Tap] = {}
    for call in _blocks(model, inputs):
        if len(call.shape) == 4 and call.size != (1, 1):
            stages[call.size] = Tap(call.name)
    return list(stages.values())


def embedding_tap(model: nn.Module, inputs: Float[Tensor, "n c h w"]) -> Tap:
    """The input of the final classifier: of the last layer with weights."""
    weighted = [
        call.name
        for call in _blocks(model, inputs)
        if next(model.get_submodule(call.name).parameters(), None) is not None
    ]
    return Tap(weighted[-1], "input")


class _Call(NamedTuple):
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        return self.shape[2:]


def _blocks(model: nn.Module, inputs: Tensor) -> list[_Call]:
    """The calls of one forward pass, in order, each block of several layers as one.

    Inside a block that halves the resolution the first layers still have the old one (as in
    bottlenecks), and they do not end a stage: the block before does.
    """
    # Quantizers of weights are modules too: a batch of a size that no weight has tells features.
    taken = {parameter.shape[:1] for parameter in model.parameters()}
    count = next(size for size in itertools.count(2) if (size,) not in taken)
    calls: list[_Call] = []
    names = {module: name for name, module in model.named_modules() if name}
    handles = [module.register_forward_hook(_record(calls, name)) for module, name in names.items()]
    try:
        with torch.no_grad(), eval_mode(model):
            model(inputs[:1].expand(count, *inputs.shape[1:]))
    finally:
        for handle in handles:
            handle.remove()
    calls = [call for call in calls if call.shape[:1] == (count,)]
    blocks = {call.name for call in calls if _is_block(model, call, calls)}
    return [call for call in calls if call.name in blocks and blocks.isdisjoint(_above(call.name))]


def _is_block(model: nn.Module, call: _Call, calls: list[_Call]) -> bool:
    """Whether the module is a layer, or maps images to images and changes their size once."""
    inside = [other for other in calls if other.name.startswith(f"{call.name}.")]
    if not inside:
        return True
    # A pooled 1x1 map inside is that of squeeze-and-excitation.
    sizes = {c.size for c in (*inside, call) if len(c.shape) == 4 and c.size != (1, 1)}
    sequence = isinstance(model.get_submodule(call.name), nn.Sequential)
    return len(call.shape) == 4 and len(sizes) <= 2 and not sequence


def _above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _module(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules:
        raise unknown_name("layer", name, filter(None, modules), where="loss.features")
    return modules[name]


_Hook = Callable[[nn.Module, Any, Any], None]


def _keep(features: dict[Tap, Tensor], tap: Tap) -> _Hook:
    def hook(_: nn.Module, args: Any, output: Any) -> None:
        value = args[0] if tap.side == "input" else output
        if isinstance(value, Tensor):
            features[tap] = value

    return hook


def _record(calls: list[_Call], name: str) -> _Hook:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            calls.append(_Call(name, tuple(output.shape)))

    return hook
