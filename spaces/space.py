"""The search space: how an Optuna trial becomes a policy, and the way back.

A candidate is either one of a few named policies or a chain composed of one to three operations;
a mixing may follow either. Parameters belong to positions (operation_1, strength_1,
probability_1, ...) rather than to operations: few of them, so that TPE learns from few trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from spaces.errors import UserError
from spaces.operations import OPERATIONS, TRIVIAL_AUGMENT_OPERATIONS
from spaces.policy import Chain, Mixing, Operation, Policy
from spaces.schemes import SCHEMES, scheme

MAX_OPERATIONS = 3
# One choice for both, so that a random candidate is composed three times out of four.
SCHEME = "scheme"
FORMS = (*(f"operations_{n}" for n in range(1, MAX_OPERATIONS + 1)), SCHEME)
STEP = 0.1  # of strength and probability: finer differences drown in the spread over seeds
_MIXINGS = ("none", "cutmix", "mixup")


@runtime_checkable
class Trial(Protocol):
    """The part of optuna.Trial that the space needs; optuna itself stays outside this package."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float: ...


class PolicySpace:
    """Composed policies together with `named` ones; picklable, and callable as Optuna's space.

    `named` defaults to the schemes of the literature that no single chain can express. Any other
    policy can be put into the space by giving it here.
    """

    def __init__(
        self, named: Sequence[Policy] | None = None, image_size: tuple[int, int] | None = None
    ) -> None:
        if named is None:
            names = ("trivial_augment", "rand_augment", "auto_augment_cifar10", "auto_augment_svhn")
            named = [scheme(name) for name in names]
        self.named = {policy.name or policy.identity: policy for policy in named}
        self.image_size = image_size
        # A chain that happens to be a scheme is called what people call it.
        self._names = {s.policy.identity: name for name, s in SCHEMES.items()}

    def __call__(self, trial: Trial) -> dict[str, str]:
        """What Ray's OptunaSearch puts beside the parameters into a trial's config."""
        return {"policy": self.suggest(trial).model_dump_json()}

    def suggest(self, trial: Trial) -> Policy:
        """The policy that `trial` stands for, without operations that change nothing."""
        form = trial.suggest_categorical("form", FORMS if self.named else FORMS[:-1])
        if form == SCHEME:
            policy = self.named[trial.suggest_categorical("scheme", list(self.named))]
        else:
            positions = range(1, FORMS.index(form) + 2)
            operations = tuple(_operation(trial, position) for position in positions)
            policy = Policy(chains=(Chain(operations=operations),))
        mixing = trial.suggest_categorical("mixing", _MIXINGS)
        if mixing != "none" and policy.mixing is None:
            name = f"{policy.name}+{mixing}" if policy.name else None
            policy = policy.model_copy(
                update={"mixing": Mixing.model_validate({"name": mixing}), "name": name}
            )
        policy = policy.normalised()
        name = policy.name or self._names.get(policy.identity)
        return policy.model_copy(update={"name": name, "image_size": self.image_size})

    def params(self, policy: Policy) -> dict[str, Any]:
        """The parameters for which `suggest` returns `policy`, up to its name.

        Raises UserError where the space does not hold it: more chains than one that are not
        named, magnitudes off the grid, another interpolation.
        """
        for params in (*self._as_named(policy), *_as_composed(policy)):
            if self.suggest(_Fixed(params)).identity == policy.identity:
                return params
        raise UserError(
            f"policy {str(policy)!r} is outside the search space: one chain of up to "
            f"{MAX_OPERATIONS} operations at strengths and probabilities in steps of {STEP}, or "
            f"one of {', '.join(self.named)}, then none, cutmix or mixup at alpha 1"
        )

    def _as_named(self, policy: Policy) -> list[dict[str, Any]]:
        mixing = policy.mixing.name if policy.mixing else "none"
        return [
            {"form": SCHEME, "scheme": name, "mixing": m}
            for name in self.named
            for m in dict.fromkeys((mixing, "none"))
        ]


def _operation(trial: Trial, position: int) -> Operation:
    name = trial.suggest_categorical(f"operation_{position}", TRIVIAL_AUGMENT_OPERATIONS)
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


def _as_composed(policy: Policy) -> list[dict[str, Any]]:
    policy = policy.normalised()
    operations = policy.chains[0].operations or (Operation(name="identity"),)
    if len(policy.chains) > 1 or policy.draws > 1 or len(operations) > MAX_OPERATIONS:
        return []
    params: dict[str, Any] = {"form": FORMS[len(operations) - 1]}
    for position, operation in enumerate(operations, start=1):
        if operation.name not in TRIVIAL_AUGMENT_OPERATIONS:
            return []
        params[f"operation_{position}"] = operation.name
        if operation.kind.has_magnitude:
            if not isinstance(operation.magnitude, float):
                return []
            params[f"strength_{position}"] = _on_grid(operation.kind.strength(operation.magnitude))
        if operation.name != "identity":
            params[f"probability_{position}"] = _on_grid(operation.probability)
    return [params | {"mixing": policy.mixing.name if policy.mixing else "none"}]


def _on_grid(value: float) -> float:
    return round(max(round(value / STEP), 1) * STEP, 12)


@dataclass
class _Fixed:
    """A trial whose answers are given; what optuna.trial.FixedTrial is, without optuna."""

    params: Mapping[str, Any]

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        return self.params[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        return float(self.params[name])
