"""Policies: what is done to a batch, and the JSON that says so.

A policy is a base chain that belongs to the data set, then a weighted choice among chains of
operations, drawn per image and `draws` times over, then at most one mixing of whole batches.
Magnitudes are physical (see operations.py), and loading fails on anything unknown, so that a file
means the same next year.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from spaces.atomic_write import atomic_write
from spaces.errors import UserError, from_validation
from spaces.frozen import Frozen
from spaces.operations import COVERS, OPERATIONS, WARPS, OperationKind, operation_kind

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

    def normalised(self) -> "Operation":
        """A range of one value as that value, and the value that the kernel rounds to."""
        magnitude = self.magnitude
        if isinstance(magnitude, Range) and self._rounded(magnitude.low) == self._rounded(
            magnitude.high
        ):
            magnitude = magnitude.low
        if isinstance(magnitude, float):
            magnitude = self._rounded(magnitude)
        return self.model_copy(update={"magnitude": magnitude})

    def _rounded(self, magnitude: float) -> float:
        if self.name == "solarize":  # values are whole, and those at the threshold are inverted
            magnitude = math.ceil(magnitude)
        return float(round(magnitude)) if self.kind.whole else magnitude + 0.0  # not -0.0

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

    def normalised(self) -> "Chain":
        """Without operations that change nothing, and fixed magnitudes where a range is one."""
        operations = (operation.normalised() for operation in self.operations)
        kept = tuple(operation for operation in operations if not operation.changes_nothing)
        return self.model_copy(update={"operations": kept})

    def __str__(self) -> str:
        return " > ".join(map(str, self.operations)) or "identity"


def _merged(chains: Iterable[Chain]) -> tuple[Chain, ...]:
    """Equal chains as one, with the sum of their weights, in the order of their content."""
    weights: dict[tuple[Operation, ...], float] = defaultdict(float)
    for chain in chains:
        weights[chain.operations] += chain.weight
    total = math.fsum(weights.values())
    if abs(total - 1) < 1e-9:  # rounded already: once more could move a last digit
        total = 1.0
    merged = [
        Chain(operations=o, weight=max(round(w / total, 12), 1e-12)) for o, w in weights.items()
    ]
    return tuple(sorted(merged, key=lambda chain: chain.model_dump_json()))


# Below, most variables are 0 or 1 in floating point and their ratio is undefined.
Alpha = Annotated[float, Field(ge=0.05, le=1000)]


class Blend(Frozen):
    """AugMix (arXiv 1912.02781): the image blended with `width` augmented versions of itself.

    The image's own share is Beta(alpha, alpha), the versions divide the rest as Dirichlet(alpha).
    """

    width: Annotated[int, Field(ge=1, le=8)] = 3
    alpha: Alpha = 1.0

    def __str__(self) -> str:
        return f"blend of {self.width}" + ("" if self.alpha == 1 else f" alpha={self.alpha:g}")


MIXINGS = ("cutmix", "mixup", "cutmix_pick")


class Mixing(Frozen):
    """What mixes images with each other, lambda ~ Beta(alpha, alpha), one for all images of a batch
    or one `per` image.

    CutMix (arXiv 1905.04899), MixUp (arXiv 1710.09412), or CutMixPick (Wang et al., NeurIPS 2022,
    arXiv 2012.02909): of more CutMix images than a batch holds the share `keep` that the teacher is
    least certain of, half of them by default.
    """

    name: Literal["cutmix", "mixup", "cutmix_pick"]
    alpha: Alpha = 1.0
    probability: Probability = 1.0
    per: Literal["batch", "image"] = "batch"
    keep: Annotated[float, Field(ge=0.05, lt=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _half(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("name") == "cutmix_pick":
            return {**content, "keep": 0.5 if content.get("keep") is None else content["keep"]}
        return content

    @model_validator(mode="after")
    def _keep_is_for_picking(self) -> "Mixing":
        if self.keep is not None and self.name != "cutmix_pick":
            raise ValueError(f"keep belongs to cutmix_pick, {self.name} keeps every image")
        return self

    def __str__(self) -> str:
        detail = "" if self.alpha == 1 else f" alpha={self.alpha:g}"
        detail += " per image" if self.per == "image" else ""
        detail += "" if self.keep in (None, 0.5) else f" keep={self.keep:g}"
        return self.name + detail + ("" if self.probability == 1 else f" p={self.probability:g}")


class Policy(Frozen):
    """What is done to a batch. `Policy()` does nothing.

    Every image passes the `base`, then `draws` chains, each drawn by weight; with `min_draws` their
    number is drawn too, from `min_draws` to `draws`. `image_size`, (height, width) in pixels, tells
    where the policy was found; fractions and degrees carry over to other sizes, pixels do not.
    `name` is for people: it does not change what is done.
    """

    version: Literal[1] = 1
    name: str | None = None
    base: Chain = Chain()
    chains: Annotated[tuple[Chain, ...], Field(strict=False, min_length=1)] = (Chain(),)
    draws: Annotated[int, Field(ge=1, le=8)] = 1
    min_draws: Annotated[int, Field(ge=1, le=8)] | None = None
    blend: Blend | None = None
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

    @model_validator(mode="after")
    def _draws_in_order(self) -> "Policy":
        if self.min_draws is not None and self.min_draws > self.draws:
            raise ValueError(f"min_draws {self.min_draws} is above draws {self.draws}")
        return self

    @property
    def identity(self) -> str:
        """Sixteen hex digits of what is done: equal for policies that differ in name only."""
        content = self.normalised().model_dump(mode="json", exclude={"name", "image_size"})
        text = json.dumps(content, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def normalised(self) -> "Policy":
        """The same policy in the one way to write it: without what changes nothing, equal chains
        together, in order, their weights summing to 1."""
        chains = _merged(chain.normalised() for chain in self.chains)
        base = self.base.normalised().model_copy(update={"weight": 1.0})
        mixing = self.mixing if self.mixing and self.mixing.probability > 0 else None
        changes: dict[str, Any] = {"base": base, "chains": chains, "mixing": mixing}
        if not any(chain.operations for chain in chains):
            changes |= {"draws": 1, "min_draws": None, "blend": None}
        elif self.min_draws == self.draws:
            changes |= {"min_draws": None}
        names = {o.name for chain in (base, *chains) for o in chain.operations}
        if not names & WARPS:
            changes |= {"interpolation": "nearest"}
        if not names & (WARPS | COVERS):
            changes |= {"fill": 0}
        return self.model_copy(update=changes)

    def on(self, base: Chain) -> "Policy":
        """This policy on top of another base chain."""
        return self.model_copy(update={"base": base})

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
        if self.draws > 1:
            chains += f" x{self.min_draws}-{self.draws}" if self.min_draws else f" x{self.draws}"
        return " + ".join([chains, *map(str, filter(None, (self.blend, self.mixing)))])


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
    except (OSError, ValueError) as error:
        not_text = isinstance(error, UnicodeDecodeError)
        reason = "not a text file" if not_text else getattr(error, "strerror", str(error))
        raise UserError(f"{path}: cannot read the policy file: {reason}") from None
    return policy_from_json(text, where=str(path))


# For editors and other languages; beside this module, so that it travels with the package.
SCHEMA_FILE = Path(__file__).with_name("policy.schema.json")


def json_schema() -> dict[str, Any]:
    """The JSON schema of a policy file. What depends on two keys at once, above all the range of a
    magnitude, is checked on loading."""
    schema = Policy.model_json_schema()
    names = list(OPERATIONS)
    schema["required"] = ["version"]
    schema["$defs"]["Operation"]["properties"]["name"]["enum"] = names
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
