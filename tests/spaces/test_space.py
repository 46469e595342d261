"""From an Optuna trial to a policy and back."""

import warnings

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spaces import Chain, Mixing, Operation, Policy, PolicySpace, Range, UserError, scheme
from spaces.flat import FlatSpace
from spaces.schemes import SCHEMES, rand_augment
from spaces.space import SpaceSpec

optuna.logging.set_verbosity(optuna.logging.ERROR)
SPACE = PolicySpace(image_size=(16, 16))


def proposals(count: int, seed: int) -> list[Policy]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [SPACE.suggest(study.ask()) for _ in range(count)]


def asked_first(policy: Policy, space: PolicySpace = SPACE) -> Policy:
    """What the space makes of a trial that Optuna was told to begin with."""
    space = space.including([policy])
    study = optuna.create_study()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.enqueue_trial(space.params(policy))
        return space.suggest(study.ask())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_params_are_the_inverse_of_suggest(seed):
    for policy in proposals(5, seed):
        assert asked_first(policy).identity == policy.identity


@pytest.mark.parametrize("mixing", ["", "+cutmix", "+mixup"])
@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_can_be_asked_first_and_keeps_its_name(name, mixing):
    if SCHEMES[name].policy.mixing and mixing:
        return
    policy = scheme(name + mixing)
    asked = asked_first(policy)
    assert asked.identity == policy.identity
    if not mixing or name != "none":
        assert asked.name == policy.name


def test_random_candidates_reach_every_part_of_the_space():
    policies = proposals(600, seed=0)
    lengths = {len(p.chains[0].operations) for p in policies if len(p.chains) == 1}
    assert lengths == {0, 1, 2, 3}
    assert {p.mixing.name if p.mixing else None for p in policies} == {None, "cutmix", "mixup"}
    names = {o.name for p in policies for c in p.chains if len(p.chains) == 1 for o in c.operations}
    assert len(names) == 13  # the fourteenth, identity, is left out of what it does not change
    assert 0.15 < sum(len(p.chains) > 1 for p in policies) / len(policies) < 0.35
    assert all(p.image_size == (16, 16) for p in policies)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31))
def test_as_numbers_alone_the_space_has_the_same_policies(seed):
    flat = FlatSpace(SPACE)
    for policy in (*proposals(3, seed), scheme("rand_augment+mixup"), scheme("none")):
        study = optuna.create_study()
        study.enqueue_trial(flat.params(policy))
        trial = study.ask()
        assert flat.suggest(trial).identity == policy.identity
        assert set(trial.params) == set(flat.names)
        assert all(0 < value < 1 for value in trial.params.values())


def test_every_corner_of_the_numbers_is_a_policy():
    flat = FlatSpace(SPACE)
    study = optuna.create_study()
    for corner in (0.0, 1.0):
        study.enqueue_trial(dict.fromkeys(flat.names, corner))
        SPACE.params(flat.suggest(study.ask()))


@pytest.mark.parametrize(
    "outside",
    [
        Policy(chains=(Chain(operations=(Operation(name="rotate", magnitude=17.3),)),)),
        Policy(chains=(Chain(operations=(Operation(name="invert"),)),)),
        Policy(chains=(Chain(operations=(Operation(name="equalize"),) * 4),)),
        Policy(mixing=Mixing(name="cutmix", alpha=0.5)),
        Policy(
            chains=(Chain(operations=(Operation(name="rotate", magnitude=Range(low=0, high=27)),)),)
        ),
        rand_augment(3, 4).model_copy(update={"name": "rand_augment"}),
        Policy(
            interpolation="bilinear",
            chains=(Chain(operations=(Operation(name="rotate", magnitude=27.0),)),),
        ),
    ],
)
def test_a_policy_outside_is_refused_unless_it_is_named(outside):
    with pytest.raises(UserError, match="outside the search space: one chain of up to 3"):
        SPACE.params(outside)
    assert asked_first(outside).identity == outside.identity


def test_policies_of_one_name_are_asked_apart():
    first, second = (
        Policy(name="mine", chains=(Chain(operations=(Operation(name="hue", magnitude=m),)),))
        for m in (0.1, 0.2)
    )
    space = SPACE.including([first, second, scheme("cutout")])
    for policy in (first, second, scheme("cutout")):
        assert asked_first(policy, space).identity == policy.identity
    assert space.including([first, second]) is space


def test_any_policy_can_be_asked_whatever_mixings_the_space_has():
    space = PolicySpace(SpaceSpec(mixings=("cutmix",)))
    composed = Policy(chains=(Chain(operations=(Operation(name="hue", magnitude=0.123),)),))
    for policy in (scheme("none"), scheme("trivial_augment"), composed, scheme("cutout+mixup")):
        assert asked_first(policy, space).identity == policy.identity
        assert space.including([policy]).size == space.size + 1


def test_no_policy_is_in_the_space_once_per_mixing_that_it_cannot_have():
    space = PolicySpace(SpaceSpec(schemes=("cutmix", "augmix")))
    assert space.size == PolicySpace(SpaceSpec(schemes=())).size + 1 + 3
    with pytest.raises(ValidationError, match="every name may be there once"):
        SpaceSpec(mixings=("none", "none"))


def test_every_policy_stands_on_the_base_of_the_data():
    base = Chain(operations=(Operation(name="flip", probability=0.5),))
    space = PolicySpace(base=base)
    for name in ("none", "cutmix", "trivial_augment", "rand_augment+mixup"):
        asked = asked_first(scheme(name), space)
        assert asked.base == base
        assert asked.identity == scheme(name).on(base).identity != scheme(name).identity
        assert asked.name == name
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    assert all(space.suggest(study.ask()).base == base for _ in range(20))


def test_the_size_counts_every_combination():
    spec = SpaceSpec(
        operations=("identity", "equalize"), max_operations=2, schemes=(), mixings=("none", "mixup")
    )
    space = PolicySpace(spec)
    assert space.size == 2 * (11 + 11**2)  # identity, and equalize at ten probabilities
    found = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler())
    study.optimize(lambda trial: found.add(str(space.suggest(trial))) or 0.0, n_trials=None)
    assert len(study.trials) == space.size
    assert len(found) == 2 * (11 + 10**2)  # identity beside anything is that thing alone


def test_a_space_of_ones_own():
    spec = SpaceSpec(operations=("hue", "flip"), max_operations=1, schemes=("augmix",))
    space = PolicySpace(spec)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    names = {o.name for _ in range(60) for o in space.suggest(study.ask()).chains[0].operations}
    assert {"hue", "flip"} < names
    with pytest.raises(ValidationError, match="unknown operation 'flap': did you mean 'flip'"):
        SpaceSpec(operations=("flap",))
    with pytest.raises(ValidationError, match="unknown scheme 'augmx': did you mean 'augmix'"):
        SpaceSpec(schemes=("augmx",))


def test_a_space_without_schemes_composes():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    space = PolicySpace(named=[])
    assert all(len(space.suggest(study.ask()).chains) == 1 for _ in range(50))
