"""Policies: what is done to a batch, and the JSON that says so.

A policy is a weighted choice among chains of operations, drawn per image and `draws` times over,
then at most one mixing of whole batches. Magnitudes are physical (see operations.py), and loading
fails on anything unknown, so that a file means the same next year.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from spaces.atomic_write import atomic_write
from spaces.errors import UserError, from_validation
from spaces.frozen import Frozen
from spaces.operations import OPERATIONS, OperationKind, operation_kind

if TYPE_CHECKING:
    from spaces.augment import PolicyAugment

VERSION: Literal[1] = 1

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Side = Annotated[int, Field(ge=1)]


class Range(Frozen):
    """A magnitude drawn per image, uniformly from `bins` evenly spaced values, ends included."""

    low: float
    high: float
    bins: Annotated[int, Field(ge=2, le=256)] = 31

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self


class Operation(Frozen):
    """One step of a chain: applied to an image with `probability`, at `magnitude`."""

    name: str
    magnitude: float | Range | None = None
    probability: Probability = 1.0

    @model_validator(mode="after")
    def _within_the_table(self) -> "Operation":
        try:
            kind = operation_kind(self.name)
        except UserError as error:
            raise ValueError(str(error)) from None
        if not kind.has_magnitude:
            if self.magnitude is not None:
                raise ValueError(f"{self.name} takes no magnitude, got {self.magnitude}")
            return self
        low, high = kind.range
        if self.magnitude is None:
            raise ValueError(f"{self.name} needs a magnitude from {low:g} to {high:g} {kind.unit}")
        for value in self.extremes:
            if not low <= value <= high:
                raise ValueError(
                    f"{self.name} takes a magnitude from {low:g} to {high:g} {kind.unit}, "
                    f"got {value:g}"
                )
        return self

    @property
    def kind(self) -> OperationKind:
        return OPERATIONS[self.name]

    @property
    def extremes(self) -> tuple[float, ...]:
        """The ends of what `magnitude` can be; empty for an operation without one."""
        if isinstance(self.magnitude, Range):
            return self.magnitude.low, self.magnitude.high
        return () if self.magnitude is None else (self.magnitude,)

    @property
    def changes_nothing(self) -> bool:
        neutral = self.kind.has_magnitude and set(self.extremes) == {self.kind.neutral}
        return self.name == "identity" or self.probability == 0 or neutral

    def __str__(self) -> str:
        magnitude = self.magnitude
        if isinstance(magnitude, Range):
            text = f" {magnitude.low:g}..{magnitude.high:g}"
        else:
            text = "" if magnitude is None else f" {magnitude:g}"
        return f"{self.name}{text}" + ("" if self.probability == 1 else f" p={self.probability:g}")


class Chain(Frozen):
    """Operations one after the other; chosen with a probability proportional to `weight`."""

    operations: Annotated[tuple[Operation, ...], Field(strict=False)] = ()
    weight: Positive = 1.0

    def __str__(self) -> str:
        return " > ".join(map(str, self.operations)) or "identity"


class Mixing(Frozen):
    """CutMix (arXiv 1905.04899) or MixUp (arXiv 1710.09412), lambda ~ Beta(alpha, alpha)."""

    name: Literal["cutmix", "mixup"]
    alpha: Positive = 1.0
    probability: Probability = 1.0

    def __str__(self) -> str:
        detail = "" if self.alpha == 1 else f" alpha={self.alpha:g}"
        return self.name + detail + ("" if self.probability == 1 else f" p={self.probability:g}")


class Policy(Frozen):
    """What is done to a batch. `Policy()` does nothing.

    `image_size`, (height, width) in pixels, tells where the policy was found; fractions and
    degrees carry over to other sizes. `name` is for people: it does not change what is done.
    """

    version: Literal[1] = 1
    name: str | None = None
    chains: Annotated[tuple[Chain, ...], Field(strict=False, min_length=1)] = (Chain(),)
    draws: Annotated[int, Field(ge=1, le=8)] = 1
    mixing: Mixing | None = None
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill: Annotated[int, Field(ge=0, le=255)] = 0
    image_size: Annotated[tuple[Side, Side] | None, Field(strict=False)] = None

    @field_validator("name")
    @classmethod
    def _writable(cls, name: str | None) -> str | None:
        if name is not None and not name.isprintable():  # half a surrogate cannot even be saved
            raise ValueError(f"a name is printable text, got {name!r}")
        return name

    @property
    def identity(self) -> str:
        """Sixteen hex digits of what is done: equal for policies that differ in name only."""
        content = self.normalised().model_dump(mode="json", exclude={"name", "image_size"})
        text = json.dumps(content, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def normalised(self) -> "Policy":
        """The same policy without operations and mixings that change nothing."""
        chains = tuple(
            chain.model_copy(
                update={"operations": tuple(o for o in chain.operations if not o.changes_nothing)}
            )
            for chain in self.chains
        )
        mixing = self.mixing if self.mixing and self.mixing.probability > 0 else None
        if not any(chain.operations for chain in chains):
            return self.model_copy(update={"chains": (Chain(),), "draws": 1, "mixing": mixing})
        return self.model_copy(update={"chains": chains, "mixing": mixing})

    def augmenter(self, num_classes: int, seed: int = 0) -> "PolicyAugment":
        """This policy as a module; see PolicyAugment."""
        from spaces.augment import PolicyAugment  # here, since that module imports this one

        return PolicyAugment(self, num_classes=num_classes, seed=seed)

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    def save(self, path: Path | str) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    def __str__(self) -> str:
        if self.name:
            return self.name
        chains = " | ".join(map(str, self.chains))
        times = f" x{self.draws}" if self.draws > 1 else ""
        return f"{chains}{times}" + (f" + {self.mixing}" if self.mixing else "")


def policy_from_json(text: str, where: str = "policy") -> Policy:
    """The policy that `text` holds; raises UserError in one sentence that begins with `where`."""
    try:
        content: Any = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:  # also numbers too long, nesting too deep
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: a policy is a JSON object, got {type(content).__name__}")
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise UserError(
            f"{where}: version {content.get('version')!r} is not known, this Augury reads {VERSION}"
        )
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        raise from_validation(error, Policy, where) from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that is there twice, JSON readers keep one or the other."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} is there twice")
    return content


def load_policy(path: Path | str) -> Policy:
    """Reads a policy file; raises UserError on anything missing, unknown or out of range."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"{path}: cannot read the policy file: {reason}") from None
    return policy_from_json(text, where=str(path))
