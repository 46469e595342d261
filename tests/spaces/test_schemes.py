"""The named schemes against torchvision's tables and against its frequencies."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import AutoAugmentPolicy, v2

from spaces import Policy, UserError, scheme
from spaces.operations import OPERATIONS, TRIVIAL_AUGMENT_OPERATIONS
from spaces.policy import Range
from spaces.schemes import SCHEMES, rand_augment

SIDE = 32


def snake(name: str) -> str:
    """ShearX -> shear_x, AutoContrast -> autocontrast."""
    lower = name.lower()
    return f"{lower[:-1]}_{lower[-1]}" if name[-1] in "XY" and len(name) > 1 else lower


def physical(name: str, magnitude: float) -> float:
    """torchvision's magnitude in our unit: it shifts by pixels and solarizes at a fraction."""
    if name.startswith("translate"):
        return magnitude / SIDE
    return 255 * magnitude if name == "solarize" else magnitude


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_auto_augment_is_torchvisions_table(name):
    theirs = v2.AutoAugment(AutoAugmentPolicy(name))
    space = theirs._AUGMENTATION_SPACE
    ours = scheme(f"auto_augment_{name}").chains
    table = theirs._get_policies(AutoAugmentPolicy(name))
    assert len(ours) == len(table) == 25
    for chain, pair in zip(ours, table, strict=True):
        assert len(chain.operations) == len(pair) == 2
        for operation, (their_name, probability, level) in zip(chain.operations, pair, strict=True):
            assert operation.name == snake(their_name)
            assert operation.probability == probability
            magnitudes, signed = space[their_name]
            values = magnitudes(10, SIDE, SIDE)
            assert operation.kind.signed == signed
            if level is None:
                assert operation.magnitude is None
            else:
                expected = physical(operation.name, float(values[level]))
                assert operation.magnitude == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("level", [0, 9, 30])
def test_rand_augment_is_torchvisions_space(level):
    policy = rand_augment(3, level)
    assert policy.draws == 3
    space = v2.RandAugment._AUGMENTATION_SPACE
    assert len(policy.chains) == len(space)
    ours = {chain.operations[0].name: chain.operations[0] for chain in policy.chains}
    for their_name, (magnitudes, signed) in space.items():
        operation = ours[snake(their_name)]
        values = magnitudes(31, SIDE, SIDE)
        assert operation.kind.signed == signed
        if values is None:
            assert operation.magnitude is None
        else:
            expected = physical(operation.name, float(values[level]))
            assert operation.magnitude == pytest.approx(expected, rel=1e-6)


def test_trivial_augment_is_torchvisions_space():
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    chains = scheme("trivial_augment").chains
    assert len(chains) == len(space) == 14
    ours = {chain.operations[0].name: chain.operations[0] for chain in chains}
    for their_name, (magnitudes, _) in space.items():
        operation = ours[snake(their_name)]
        values = magnitudes(31, SIDE, SIDE)
        if values is None:
            assert operation.magnitude is None
            continue
        drawn = operation.magnitude
        assert isinstance(drawn, Range)
        bins = np.linspace(drawn.low, drawn.high, drawn.bins)
        if operation.name == "posterize":
            bins = np.round(bins)
        expected = np.sort([physical(operation.name, float(v)) for v in values])
        np.testing.assert_allclose(bins, expected, atol=1e-5)


def test_the_engine_draws_every_operation_of_trivial_augment_equally_often():
    """Told apart by what they do to one image that no two operations treat alike."""
    names = TRIVIAL_AUGMENT_OPERATIONS
    chains = scheme("trivial_augment").chains
    fixed = []
    for chain in chains:
        operation = chain.operations[0]
        magnitude = None if operation.magnitude is None else operation.kind.at_strength(0.5)
        steady = operation.model_copy(update={"magnitude": magnitude})
        fixed.append(chain.model_copy(update={"operations": (steady,)}))
    count = 7_000
    one = torch.randint(40, 190, (3, 32, 32), dtype=torch.uint8)
    images, labels = one.expand(count, 3, 32, 32), torch.zeros(count, dtype=torch.int64)
    out, _ = Policy(chains=tuple(fixed)).augmenter(1)(images, labels)
    observed = dict.fromkeys(names, 0)
    outcomes = {}
    for chain in fixed:
        kind = chain.operations[0].kind
        for sign in (1, -1):
            augment = Policy(chains=(chain,)).augmenter(1, seed=sign + 10)
            for image in augment(images[:40], labels[:40])[0]:
                outcomes[image.numpy().tobytes()] = kind.name
    for image in out:
        observed[outcomes[image.numpy().tobytes()]] += 1
    assert stats.chisquare(list(observed.values())).pvalue > 1e-3


@pytest.mark.parametrize("name", SCHEMES)
def test_a_mixing_follows_any_scheme_that_has_none(name):
    if scheme(name).mixing is None:
        combined = scheme(f"{name}+cutmix")
        assert combined.mixing is not None
        assert combined.chains == scheme(name).chains
        assert str(combined) == f"{name}+cutmix"
    else:
        with pytest.raises(UserError, match="is a mixing already"):
            scheme(f"{name}+mixup")


def test_unknown_names_list_the_known_ones_nearest_first():
    with pytest.raises(UserError, match=r"'trivialaugment': did you mean 'trivial_augment'.*none"):
        scheme("trivialaugment")
    with pytest.raises(UserError, match=r"unknown mixing 'cutmx' .*did you mean 'cutmix'"):
        scheme("rand_augment+cutmx")


def test_every_scheme_says_what_it_does_and_where_it_comes_from():
    for name, found in SCHEMES.items():
        assert found.policy.name == name
        assert found.summary
        assert "arXiv" in found.citation or name == "none"
    assert all(
        operation.name in OPERATIONS
        for found in SCHEMES.values()
        for chain in found.policy.chains
        for operation in chain.operations
    )
