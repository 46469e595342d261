"""The search space: how an Optuna trial becomes a policy, and the way back.

A candidate is either one of a few named policies or a chain composed of one to three operations;
a mixing may follow either. Parameters belong to positions (operation_1, strength_1,
probability_1, ...) rather than to operations: few of them, so that TPE learns from few trials.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import AfterValidator, Field

from spaces.errors import UserError, unknown_name
from spaces.frozen import Frozen
from spaces.operations import OPERATIONS, TRIVIAL_AUGMENT_OPERATIONS
from spaces.policy import Chain, Mixing, Operation, Policy
from spaces.schemes import SCHEMES, scheme

# One choice for both, so that a random candidate is composed three times out of four.
SCHEME = "scheme"
STEP = 0.1  # of strength and probability: finer differences drown in the spread over seeds
_GRID = round(1 / STEP)


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("every name may be there once")
    return names


def _known(kind: str, valid: Iterable[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in valid:
            raise ValueError(str(unknown_name(kind, name, valid)))
        return name

    return AfterValidator(check)


class SpaceSpec(Frozen):
    """What candidates are made of."""

    operations: Annotated[
        tuple[Annotated[str, _known("operation", OPERATIONS)], ...],
        Field(strict=False, min_length=1, description="what chains are composed of"),
        AfterValidator(_once),
    ] = TRIVIAL_AUGMENT_OPERATIONS
    max_operations: Annotated[int, Field(ge=1, le=5, description="of a composed chain")] = 3
    schemes: Annotated[
        tuple[Annotated[str, _known("scheme", SCHEMES)], ...],
        Field(strict=False, description="named policies that no single chain can express"),
        AfterValidator(_once),
    ] = ("trivial_augment", "rand_augment", "auto_augment_cifar10", "auto_augment_svhn")
    mixings: Annotated[
        tuple[Literal["none", "cutmix", "mixup", "cutmix_pick"], ...],
        Field(strict=False, min_length=1, description="what may follow either"),
        AfterValidator(_once),
    ] = ("none", "cutmix", "mixup")


@runtime_checkable
class Trial(Protocol):
    """The part of optuna.Trial that the space needs; optuna itself stays outside this package."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None
    ) -> float: ...


class PolicySpace:
    """Composed policies together with `named` ones.

    Every candidate stands on `base`, the chain that belongs to the data set, whatever its own base
    was. `including` puts any policy at all into the space, so that it can be asked first; those
    are `asked` as they are, and no mixing of the space follows them.
    """

    def __init__(
        self,
        spec: SpaceSpec | None = None,
        *,
        base: Chain | None = None,
        named: Sequence[Policy] | None = None,
        asked: Sequence[Policy] = (),
        image_size: tuple[int, int] | None = None,
    ) -> None:
        self.spec = spec or SpaceSpec()
        self.base = base or Chain()
        if named is None:
            named = [scheme(name) for name in self.spec.schemes]
        self._schemes, self._asked = tuple(named), tuple(asked)
        self.named = _by_name((*named, *asked))
        mixed = [policy for policy in named if policy.mixing is not None]
        # Names of policies that no mixing may follow.
        self._as_it_is = {n for n, p in self.named.items() if p in (*mixed, *asked)}
        self.image_size = image_size
        lengths = range(1, self.spec.max_operations + 1)
        self._forms = [f"operations_{n}" for n in lengths] + [SCHEME] * bool(self.named)
        # A chain that happens to be a scheme is called what people call it.
        self._names = {s.policy.on(self.base).identity: name for name, s in SCHEMES.items()}

    def including(self, policies: Iterable[Policy]) -> "PolicySpace":
        """This space, or one that names those of `policies` that it does not hold."""
        outside = {p.on(self.base).identity: p for p in policies if self._find(p) is None}
        if not outside:
            return self
        return PolicySpace(
            self.spec,
            base=self.base,
            named=self._schemes,
            asked=(*self._asked, *outside.values()),
            image_size=self.image_size,
        )

    @property
    def size(self) -> int:
        """How many combinations of parameters there are; a few of them are the same policy."""
        position = 0
        for name in self.spec.operations:
            strengths = _GRID if OPERATIONS[name].has_magnitude else 1
            position += 1 if name == "identity" else strengths * _GRID
        lengths = range(1, self.spec.max_operations + 1)
        composed = sum(position**length for length in lengths) * len(self.spec.mixings)
        mixed = len(self.named) - len(self._as_it_is)
        return composed + mixed * len(self.spec.mixings) + len(self._as_it_is)

    def suggest(self, trial: Trial) -> Policy:
        """The policy that `trial` stands for, without operations that change nothing."""
        form = trial.suggest_categorical("form", self._forms)
        if form == SCHEME:
            called = trial.suggest_categorical("scheme", list(self.named))
            policy = self.named[called]
            if called in self._as_it_is:
                return self._finished(policy)
        else:
            positions = range(1, self._forms.index(form) + 2)
            operations = tuple(self._operation(trial, position) for position in positions)
            policy = Policy(chains=(Chain(operations=operations),))
        mixing = trial.suggest_categorical("mixing", self.spec.mixings)
        if mixing != "none" and policy.mixing is None:
            name = f"{policy.name}+{mixing}" if policy.name else None
            policy = policy.model_copy(
                update={"mixing": Mixing.model_validate({"name": mixing}), "name": name}
            )
        return self._finished(policy)

    def _finished(self, policy: Policy) -> Policy:
        policy = policy.on(self.base).normalised()
        name = policy.name or self._names.get(policy.identity)
        return policy.model_copy(update={"name": name, "image_size": self.image_size})

    def params(self, policy: Policy) -> dict[str, Any]:
        """The parameters for which `suggest` returns `policy`, up to its name, on this base.

        Raises UserError where the space does not hold it (see `including`): more chains than one
        that are not named, magnitudes off the grid, another interpolation.
        """
        found = self._find(policy)
        if found is None:
            raise UserError(
                f"policy {str(policy)!r} is outside the search space: one chain of up to "
                f"{self.spec.max_operations} operations at strengths and probabilities in steps of "
                f"{STEP}, or one of {', '.join(self.named)}, then {' or '.join(self.spec.mixings)}"
            )
        return found

    def _find(self, policy: Policy) -> dict[str, Any] | None:
        wanted = policy.on(self.base)
        for params in (*self._as_composed(policy), *self._as_named(policy)):
            if self.suggest(_Fixed(params)).identity == wanted.identity:
                return params
        return None

    def _as_named(self, policy: Policy) -> list[dict[str, Any]]:
        mixing = policy.mixing.name if policy.mixing else "none"
        mixings = dict.fromkeys(m for m in (mixing, *self.spec.mixings) if m in self.spec.mixings)
        found: list[dict[str, Any]] = []
        for name in self.named:
            params = {"form": SCHEME, "scheme": name}
            mixed = [params | {"mixing": m} for m in mixings]
            found += [params] if name in self._as_it_is else mixed
        return found

    def _operation(self, trial: Trial, position: int) -> Operation:
        name = trial.suggest_categorical(f"operation_{position}", self.spec.operations)
        kind = OPERATIONS[name]
        if name == "identity":
            return Operation(name=name)
        magnitude = None
        if kind.has_magnitude:
            magnitude = kind.at_strength(
                trial.suggest_float(f"strength_{position}", STEP, 1.0, step=STEP)
            )
        probability = trial.suggest_float(f"probability_{position}", STEP, 1.0, step=STEP)
        return Operation(name=name, magnitude=magnitude, probability=round(probability, 12))

    def _as_composed(self, policy: Policy) -> list[dict[str, Any]]:
        policy = policy.normalised()
        mixing = policy.mixing.name if policy.mixing else "none"
        operations = policy.chains[0].operations or self._nothing()
        fits = len(policy.chains) == 1 and 0 < len(operations) <= self.spec.max_operations
        if not fits or policy.draws > 1 or mixing not in self.spec.mixings:
            return []
        params: dict[str, Any] = {"form": self._forms[len(operations) - 1]}
        for position, operation in enumerate(operations, start=1):
            if operation.name not in self.spec.operations:
                return []
            params[f"operation_{position}"] = operation.name
            if operation.kind.has_magnitude:
                if not isinstance(operation.magnitude, float):
                    return []
                strength = operation.kind.strength(operation.magnitude)
                params[f"strength_{position}"] = _on_grid(strength)
            if operation.name != "identity":
                params[f"probability_{position}"] = _on_grid(operation.probability)
        return [params | {"mixing": mixing}]

    def _nothing(self) -> tuple[Operation, ...]:
        return (Operation(name="identity"),) if "identity" in self.spec.operations else ()


def _by_name(policies: Iterable[Policy]) -> dict[str, Policy]:
    named: dict[str, Policy] = {}
    for policy in policies:
        name = policy.name or policy.identity
        if name in named:  # two files may give different policies one name
            name = f"{name} ({policy.identity})"
        named[name] = policy
    return named


def _on_grid(value: float) -> float:
    return round(max(round(value / STEP), 1) * STEP, 12)


@dataclass
class _Fixed:
    """A trial whose answers are given; what optuna.trial.FixedTrial is, without optuna."""

    params: Mapping[str, Any]

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        return self.params[name]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None
    ) -> float:
        return float(self.params[name])
