"""Weights from files: read without executing anything, and fitted or refused by name."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spaces.errors import UserError

PICKLED = (".pt", ".pth")
SAFE = ".safetensors"
# What DataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")
NAMED = 3  # keys that an error spells out


def load_weights(model: nn.Module, path: Path, num_classes: int) -> None:
    """Loads the state_dict in the file `path` into `model`, a classifier of `num_classes` classes.

    A state_dict may lie under the key `state_dict`, and its names may begin with `module.`. Raises
    UserError where the file cannot be read, holds another network's weights or other numbers of
    classes, or numbers that are not finite.
    """
    state, expected = read_state_dict(path), model.state_dict()
    while state and (prefix := _common_prefix(state, expected)):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    missing, unexpected = sorted(expected.keys() - state), sorted(state.keys() - expected)
    if missing or unexpected:
        lists = [(missing, "missing"), (unexpected, "unexpected")]
        what = ", ".join(f"{len(keys)} {word} ({_some(keys)})" for keys, word in lists if keys)
        raise UserError(f"{path}: the weights of another network: of {len(expected)} keys {what}")
    differing = [key for key in expected if state[key].shape != expected[key].shape]
    if differing:
        raise UserError(f"{path}: {_why_shapes_differ(differing, state, expected, num_classes)}")
    broken = [key for key, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UserError(
            f"{path}: numbers that are not finite in {len(broken)} of the weights ({_some(broken)})"
        )
    model.load_state_dict(state)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of `path` by name, on the CPU; nothing of the file is executed."""
    if path.suffix not in (*PICKLED, SAFE):
        raise UserError(f"{path}: weights are files that end in .pt, .pth or .safetensors")
    try:
        with path.expanduser().open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot read the weights: {error.strerror}") from None
    content = _read_safe(path) if path.suffix == SAFE else _read_pickled(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )
    if not tensors or not content:
        raise UserError(f"{path}: holds no state_dict: save model.state_dict() there")
    return dict(content)


def weights_hash(path: Path) -> str:
    """Sixteen hex digits of the content of a file with weights."""
    try:
        with path.expanduser().open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot read the weights: {error.strerror}") from None


def _read_pickled(path: Path) -> Any:
    try:
        return torch.load(path.expanduser(), map_location="cpu", weights_only=True)
    except Exception:  # whatever a broken file makes torch raise
        raise UserError(
            f"{path}: not a file of weights alone: save model.state_dict() with torch.save"
        ) from None


def _read_safe(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: reading it needs the package safetensors: pip install 'augury[timm]'"
        ) from None
    try:
        return load_file(path.expanduser())
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file: {error}") from None


def _common_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """A prefix that all names have and the network's do not."""
    for prefix in PREFIXES:
        if all(k.startswith(prefix) for k in state) and not any(
            k.startswith(prefix) for k in expected
        ):
            return prefix
    return None


def _why_shapes_differ(
    differing: list[str],
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    num_classes: int,
) -> str:
    """One sentence: another number of classes where only the classifier's rows differ."""
    owners = {key.rpartition(".")[0] for key in differing}
    rows = {state[key].shape[:1] for key in differing}
    head_alone = len(owners) == len(rows) == 1 and all(
        expected[key].shape[:1] == (num_classes,)
        and state[key].shape[1:] == expected[key].shape[1:]
        for key in differing
    )
    if head_alone:
        (found,) = next(iter(rows))
        return (
            f"weights for {found} classes, the data has {num_classes}: train the network on this "
            f"data first ({_some(differing)})"
        )
    key = differing[0]
    shapes = f"{key} is {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
    return (
        f"{len(differing)} of {len(expected)} weights have other shapes, for example {shapes}: "
        "is it another network or width?"
    )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:NAMED]) + (", ..." if len(keys) > NAMED else "")
