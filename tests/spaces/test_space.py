"""From an Optuna trial to a policy and back."""

import pickle
import warnings

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import Chain, Mixing, Operation, Policy, PolicySpace, Range, UserError, scheme
from spaces.policy import policy_from_json
from spaces.schemes import SCHEMES, rand_augment

optuna.logging.set_verbosity(optuna.logging.ERROR)
SPACE = PolicySpace(image_size=(16, 16))


def proposals(count: int, seed: int) -> list[Policy]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [SPACE.suggest(study.ask()) for _ in range(count)]


def asked_first(policy: Policy) -> Policy:
    """What the space makes of a trial that Optuna was told to begin with."""
    study = optuna.create_study()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.enqueue_trial(SPACE.params(policy))
        return SPACE.suggest(study.ask())


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


def test_what_ray_gets_is_the_policy_as_json():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    config = SPACE(study.ask())
    assert set(config) == {"policy"}
    assert policy_from_json(config["policy"]).image_size == (16, 16)


def test_the_space_travels():
    again = pickle.loads(pickle.dumps(SPACE))
    assert again.params(scheme("rand_augment+mixup")) == SPACE.params(scheme("rand_augment+mixup"))


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
        Policy(interpolation="bilinear", chains=(Chain(operations=(Operation(name="equalize"),)),)),
    ],
)
def test_a_policy_outside_is_refused_unless_it_is_named(outside):
    with pytest.raises(UserError, match="outside the search space: one chain of up to 3"):
        SPACE.params(outside)
    wider = PolicySpace(named=[outside])
    study = optuna.create_study()
    study.enqueue_trial(wider.params(outside))
    assert wider.suggest(study.ask()).identity == outside.identity


def test_a_space_without_schemes_composes():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    space = PolicySpace(named=[])
    assert all(len(space.suggest(study.ask()).chains) == 1 for _ in range(50))
