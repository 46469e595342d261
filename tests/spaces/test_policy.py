"""Policies as values and as files: equal for ever, or refused in one sentence."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from spaces import Chain, Mixing, Operation, Policy, Range, UserError, load_policy, scheme
from spaces.operations import OPERATIONS
from spaces.policy import policy_from_json
from spaces.schemes import SCHEMES

ROTATE = Operation(name="rotate", magnitude=30.0)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    kind = draw(st.sampled_from(list(OPERATIONS.values())))
    magnitude = None
    if kind.has_magnitude:
        low, high = sorted(draw(st.tuples(*[st.floats(*kind.range)] * 2)))
        drawn = st.builds(Range, low=st.just(low), high=st.just(high), bins=st.integers(2, 40))
        magnitude = draw(st.one_of(st.just(low), drawn))
    return Operation(name=kind.name, magnitude=magnitude, probability=draw(st.floats(0, 1)))


CHAINS = st.builds(
    Chain, operations=st.lists(operations(), max_size=3).map(tuple), weight=st.floats(0.1, 9)
)
MIXINGS = st.builds(
    Mixing,
    name=st.sampled_from(["cutmix", "mixup"]),
    alpha=st.floats(0.1, 4),
    probability=st.floats(0, 1),
)
POLICIES = st.builds(
    Policy,
    name=st.none() | st.text(max_size=8).filter(str.isprintable),
    chains=st.lists(CHAINS, min_size=1, max_size=4).map(tuple),
    draws=st.integers(1, 3),
    mixing=st.none() | MIXINGS,
    interpolation=st.sampled_from(["nearest", "bilinear"]),
    fill=st.integers(0, 255),
)


@given(POLICIES)
def test_json_and_back(policy):
    assert policy_from_json(policy.to_json()) == policy
    assert policy_from_json(policy.model_dump_json()).identity == policy.identity


@given(POLICIES)
def test_normalising_twice_is_normalising_once(policy):
    once = policy.normalised()
    assert once.normalised() == once
    assert once.identity == policy.identity


def test_save_and_load(tmp_path):
    path = tmp_path / "new" / "policy.json"
    scheme("rand_augment+cutmix").save(path)
    assert load_policy(path) == scheme("rand_augment+cutmix")


def test_a_policy_is_frozen_and_hashable():
    with pytest.raises(ValidationError, match="frozen"):
        Policy().fill = 3
    assert len({scheme("cutmix"), scheme("cutmix"), scheme("mixup")}) == 2


def chain(*operations: Operation, **changes: object) -> Policy:
    return Policy(chains=(Chain(operations=operations),), **changes)


@pytest.mark.parametrize(
    "same",
    [
        chain(ROTATE, name="another name"),
        chain(ROTATE, image_size=(32, 32)),
        chain(ROTATE, Operation(name="identity")),
        chain(Operation(name="invert", probability=0), ROTATE),
        chain(ROTATE, Operation(name="posterize", magnitude=8)),
        chain(ROTATE, mixing=Mixing(name="mixup", probability=0)),
    ],
)
def test_what_changes_nothing_does_not_change_the_identity(same):
    assert same.identity == chain(ROTATE).identity


def test_what_changes_something_changes_the_identity():
    others = [
        chain(),
        chain(ROTATE),
        chain(ROTATE, ROTATE),
        chain(ROTATE, mixing=Mixing(name="cutmix")),
        chain(ROTATE, fill=1),
        chain(ROTATE, interpolation="bilinear"),
        chain(ROTATE, draws=2),
        chain(Operation(name="rotate", magnitude=30, probability=0.5)),
    ]
    schemes = [s.policy for s in SCHEMES.values() if s.policy != scheme("none")]
    assert len({p.identity for p in (*others, *schemes)}) == len(others) + len(schemes)


def test_words_for_people():
    policy = chain(ROTATE, Operation(name="equalize", probability=0.5))
    assert str(policy) == "rotate 30 > equalize p=0.5"
    mixed = policy.model_copy(update={"mixing": Mixing(name="cutmix")})
    assert str(mixed) == "rotate 30 > equalize p=0.5 + cutmix"
    assert str(Policy()) == "identity"
    assert str(scheme("trivial_augment")) == "trivial_augment"


def with_operation(**operation: object) -> dict:
    return {"version": 1, "chains": [{"operations": [operation]}]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (with_operation(name="rotat", magnitude=3), "did you mean 'rotate'"),
        (with_operation(name="rotate"), "rotate needs a magnitude from 0 to 135 degrees"),
        (with_operation(name="rotate", magnitude=300), "from 0 to 135 degrees, got 300"),
        (with_operation(name="rotate", magnitude=-5), "from 0 to 135 degrees, got -5"),
        (with_operation(name="rotate", magnitude=True), "magnitude"),
        (with_operation(name="equalize", magnitude=1), "equalize takes no magnitude"),
        (with_operation(name="posterize", magnitude={"low": 1, "high": 4}), "got 1"),
        (with_operation(name="rotate", magnitude={"low": 9, "high": 4}), "low 9 is above high 4"),
        (with_operation(name="invert", probability=-0.1), r"probability: .*greater than or equal"),
        (with_operation(name="invert", probability=float("nan")), "probability"),
        (with_operation(name="invert", chance=1), "did you mean"),
        ({"version": 1, "chian": []}, "unknown key 'chian' .*did you mean 'chains'"),
        ({"version": 1, "chains": []}, "chains"),
        ({"version": 1, "mixing": {"name": "cutmux"}}, "mixing.name"),
        ({"version": 1, "mixing": {"name": "cutmix", "alpha": 0}}, "mixing.alpha"),
        ({"version": 1, "fill": 256}, "fill"),
        ({"version": 2}, "version 2 is not known, this Augury reads 1"),
        ({}, "version None is not known"),
        ([], "a policy is a JSON object, got list"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_one_sentence(content, sentence, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence) as caught:
        load_policy(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_no_json(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.json: cannot read the policy file"):
        load_policy(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cannot read"):
        load_policy(tmp_path)
    (tmp_path / "text").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_policy(tmp_path / "text")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        load_policy(tmp_path / "bytes")


def test_the_name_is_a_path_too(tmp_path: Path):
    scheme("none").save(str(tmp_path / "p.json"))
    assert load_policy(str(tmp_path / "p.json")).name == "none"
