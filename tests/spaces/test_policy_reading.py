"""Whatever a policy file holds, it is a policy or one sentence that says what is wrong."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import Mixing, Policy, UserError, scheme
from spaces.policy import policy_from_json

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
LEGAL = [json.loads(scheme(name).to_json()) for name in ("trivial_augment+cutmix", "rand_augment")]


def places(content: object) -> list[tuple]:
    """The paths to everything inside `content`."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found = []
    for key, value in items:
        found.append((key,))
        if isinstance(value, dict | list):
            found += [(key, *rest) for rest in places(value)]
    return found


def with_change(content: object, path: tuple, value: object) -> object:
    changed = json.loads(json.dumps(content))
    *parents, last = path
    inner = changed
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return changed


def sentence_or_policy(text: str) -> str | Policy:
    try:
        return policy_from_json(text, where="my/policy.json")
    except UserError as error:
        return str(error)


def assert_one_sentence(said: str) -> None:
    assert "my/policy.json" in said
    assert "\n" not in said
    assert "function-" not in said  # pydantic's names for its own parts mean nothing to a user


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(LEGAL), st.data())
def test_one_wrong_value_anywhere_is_refused_in_a_sentence_or_means_what_it_says(legal, data):
    path = data.draw(st.sampled_from(places(legal)))
    value = data.draw(ANYTHING)
    found = sentence_or_policy(json.dumps(with_change(legal, path, value)))
    if isinstance(found, str):
        assert_one_sentence(found)
        return
    kept = json.loads(found.to_json())
    for key in path:
        kept = kept[key]
    # What was read is what was written: 30 is 30.0, but neither true nor "30" is a number.
    if value not in (None, [], {}) and not isinstance(value, dict | list):
        assert (kept, isinstance(kept, bool)) == (value, isinstance(value, bool))


@given(ANYTHING)
def test_any_json_at_all_is_refused_in_a_sentence_or_read(content):
    found = sentence_or_policy(json.dumps(content))
    if isinstance(found, str):
        assert_one_sentence(found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": True},
        {"draws": "2"},
        {"draws": True},
        {"fill": "3"},
        {"fill": False},
        {"image_size": ["16", "16"]},
        {"image_size": [0, -5]},
        {"image_size": [16]},
        {"image_size": [16, 16, 3]},
        {"name": "two\nlines"},
        {"name": "half of a surrogate pair \ud83d"},
    ],
    ids=str,
)
def test_a_value_of_another_type_or_without_meaning_is_refused(wrong):
    found = sentence_or_policy(json.dumps({"version": 1} | wrong))
    assert isinstance(found, str), found
    assert next(iter(wrong)) in found
    assert_one_sentence(found)


def magnitude(value: object) -> str:
    operation = {"name": "rotate", "magnitude": value}
    return json.dumps({"version": 1, "chains": [{"operations": [operation]}]})


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (float("nan"), "got nan"),
        (float("inf"), "got inf"),
        ("30", "got '30'"),
        ([30], r"got \[30\]"),
        ({"low": 0, "high": 200}, "from 0 to 135 degrees, got 200"),
        (
            {"low": 0, "high": 30, "bins": 1},
            r"magnitude\.bins: .*greater than or equal to 2, got 1",
        ),
        ({"low": 0, "high": 30, "bins": 257}, r"magnitude\.bins: .*less than or equal to 256"),
        ({"low": 0, "high": float("inf")}, "got inf"),
        ({"low": 0}, r"magnitude\.high: field required"),
        ({"low": 0, "high": 30, "bnis": 3}, r"magnitude 'bnis' in .*: did you mean 'bins'"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_magnitude_is_said_in_the_words_of_the_file(value, sentence):
    found = sentence_or_policy(magnitude(value))
    assert isinstance(found, str), found
    assert_one_sentence(found)
    with pytest.raises(UserError, match=sentence):
        policy_from_json(magnitude(value), where="my/policy.json")


@pytest.mark.parametrize(
    "text",
    ["", "{", "nonsense", "\ufeff{}", "[" * 100_000, '{"version": 1, "fill": ' + "9" * 5000 + "}"],
    ids=["empty", "half", "word", "byte order mark", "deep", "long number"],
)
def test_what_is_no_json_is_called_so(text):
    found = sentence_or_policy(text)
    assert isinstance(found, str)
    assert "not JSON" in found
    assert "\n" not in found
    assert len(found) < 300


def test_a_key_that_is_there_twice_is_refused():
    found = sentence_or_policy('{"version": 1, "draws": 1, "fill": 0, "draws": 2}')
    assert isinstance(found, str)
    assert "'draws' is there twice" in found


def test_a_policy_that_does_nothing_is_one_policy_however_it_is_written():
    idle = [Policy(), Policy(draws=3), Policy(name="idle"), scheme("none")]
    idle.append(Policy(draws=2, mixing=Mixing(name="mixup", probability=0)))
    assert len({policy.identity for policy in idle}) == 1
    assert all(policy.normalised().draws == 1 for policy in idle)
