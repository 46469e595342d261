"""Policies as values and as files: equal for ever, or refused in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from spaces import Chain, Mixing, Operation, Policy, Range, UserError, load_policy, scheme
from spaces.operations import OPERATIONS
from spaces.policy import SCHEMA_FILE, Blend, json_schema, policy_from_json
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
    name=st.sampled_from(["cutmix", "mixup", "cutmix_pick"]),
    per=st.sampled_from(["batch", "image"]),
    alpha=st.floats(0.1, 4),
    probability=st.floats(0, 1),
)
POLICIES = st.builds(
    Policy,
    name=st.none() | st.text(max_size=8).filter(str.isprintable),
    chains=st.lists(CHAINS, min_size=1, max_size=4).map(tuple),
    base=CHAINS,
    min_draws=st.none() | st.just(1),
    draws=st.integers(1, 3),
    blend=st.none() | st.builds(Blend, width=st.integers(1, 4), alpha=st.floats(0.1, 4)),
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


def chains_of(*weights: float) -> tuple[Chain, ...]:
    names = ("invert", "equalize", "flip")
    return tuple(
        Chain(operations=(Operation(name=name),), weight=weight)
        for name, weight in zip(names, weights, strict=False)
    )


def test_policies_that_do_the_same_have_one_identity():
    some = chains_of(1.0, 3.0)
    same = [
        Policy(chains=some),
        Policy(chains=some[::-1]),
        Policy(chains=chains_of(2.0, 6.0)),
        Policy(chains=(*chains_of(1.0, 2.0), *chains_of(0.0001, 1.0)[1:])),
        Policy(chains=some, interpolation="bilinear", fill=9),  # nothing here moves a pixel
        Policy(chains=some, min_draws=1),
        Policy(chains=some, mixing=Mixing(name="mixup", probability=0)),
    ]
    assert len({policy.identity for policy in same}) == 1
    other = [
        Policy(chains=chains_of(1.0, 2.0)),
        Policy(chains=some, draws=2),
        Policy(chains=some, draws=2, min_draws=1),
        Policy(chains=some, blend=Blend()),
        Policy(chains=some, base=Chain(operations=(Operation(name="flip"),))),
        Policy(chains=some, mixing=Mixing(name="mixup")),
        Policy(chains=some, mixing=Mixing(name="mixup", per="image")),
    ]
    assert len({policy.identity for policy in (*same, *other)}) == 1 + len(other)


def test_a_range_of_one_value_is_that_value():
    fixed, drawn = (
        Policy(chains=(Chain(operations=(Operation(name="rotate", magnitude=m),)),))
        for m in (30.0, Range(low=30, high=30))
    )
    assert fixed.identity == drawn.identity
    assert fixed.model_copy(update={"fill": 3}).identity != fixed.identity


@pytest.mark.parametrize(
    ("name", "magnitude"),
    [
        ("posterize", 7.6),
        ("posterize", Range(low=7.6, high=8.0)),
        ("solarize", 255.5),
        ("rotate", -0.0),
        ("crop", 0.0),
    ],
)
def test_what_the_kernel_rounds_to_nothing_is_nothing(name, magnitude):
    operation = Operation(name=name, magnitude=magnitude)
    policy = Policy(chains=(Chain(operations=(operation,)),))
    assert policy.identity == policy.normalised().identity == Policy().identity
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    out, _ = policy.augmenter(1)(images, torch.zeros(9, dtype=torch.int64))
    assert torch.equal(out, images)


def test_an_alpha_whose_variables_vanish_is_refused():
    for part in (Mixing, Blend):
        content = {"name": "mixup"} if part is Mixing else {}
        with pytest.raises(ValidationError, match=r"greater than or equal to 0\.05"):
            part.model_validate(content | {"alpha": 1e-3})
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.05"):
        Mixing(name="cutmix_pick", keep=1e-12)
    smallest = Mixing(name="mixup", alpha=0.05, per="image")
    images = torch.randint(0, 256, (500, 3, 4, 4), dtype=torch.uint8)
    _, targets = Policy(mixing=smallest).augmenter(1)(images, torch.zeros(500, dtype=torch.int64))
    torch.testing.assert_close(targets, torch.ones(500, 1))


def test_a_policy_found_at_another_size_scales_fractions_and_refuses_pixels(caplog):
    images, labels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.tensor([0, 0])
    shift = Operation(name="translate_x", magnitude=0.5)
    found = Policy(chains=(Chain(operations=(shift,)),), image_size=(32, 32))
    augment = found.augmenter(1)
    for _ in range(2):
        augment(images, labels)
    (said,) = caplog.messages
    assert "found at 32x32 pixels; at 64x64 its fractions of the side are scaled" in said
    blur = Policy(
        chains=(Chain(operations=(Operation(name="blur", magnitude=1.0),)),), image_size=(32, 32)
    )
    with pytest.raises(UserError, match="found at 32x32 pixels and has magnitudes in pixels"):
        blur.augmenter(1)(images, labels)
    blur.augmenter(1)(images[..., :32, :32], labels)


def test_the_published_schema_is_this_versions():
    """A change of the format renews the file: python -m spaces.policy."""
    published = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert published == json_schema()
    assert published["properties"]["version"]["const"] == 1
