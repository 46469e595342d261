"""The named schemes against torchvision's tables and against its frequencies."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from spaces import Chain, Operation, Policy, UserError, scheme
from spaces.augment import blend_weights
from spaces.operations import OPERATIONS, TRIVIAL_AUGMENT_OPERATIONS
from spaces.policy import Blend, Range
from spaces.schemes import SCHEMES, policy_called, rand_augment

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


@pytest.mark.parametrize("name", ["cifar10", "svhn", "imagenet"])
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


def test_augmix_is_torchvisions_space():
    policy = scheme("augmix")
    theirs = v2.AugMix()
    assert policy.blend is not None
    assert (policy.blend.width, policy.blend.alpha) == (theirs.mixture_width, theirs.alpha)
    assert (policy.min_draws, policy.draws) == (1, 3)
    assert policy.interpolation == InterpolationMode(theirs.interpolation).value
    ours = {chain.operations[0].name: chain.operations[0] for chain in policy.chains}
    assert set(ours) == {snake(name) for name in theirs._AUGMENTATION_SPACE}
    for their_name, (magnitudes, signed) in theirs._AUGMENTATION_SPACE.items():
        operation = ours[snake(their_name)]
        assert operation.kind.signed == signed
        values = magnitudes(theirs._PARAMETER_MAX, SIDE, SIDE)
        if values is None:
            assert operation.magnitude is None
            continue
        bins = np.linspace(operation.magnitude.low, operation.magnitude.high, 3)
        bins = np.round(bins) if operation.kind.whole else bins
        expected = [physical(operation.name, float(v)) for v in values[: theirs.severity]]
        np.testing.assert_allclose(np.sort(bins), np.sort(expected), atol=1e-4)


def test_augmix_blends_as_torchvision_does_given_the_same_draws():
    """All versions by inversion alone: the blend is then a known function of the weights."""
    surely = Chain(operations=(Operation(name="invert"),))
    policy = Policy(chains=(surely,), blend=Blend(width=3))
    images = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8)
    out, _ = policy.augmenter(1)(images, torch.zeros(400, dtype=torch.int64))
    weights = blend_weights(3, 1.0, np.arange(400), (0, 0)).astype(np.float32)
    theirs = v2.AugMix(chain_depth=1)
    for image, found, weight in zip(images, out, torch.from_numpy(weights), strict=True):
        own = float(weight[0])
        draws = iter([torch.tensor([[own, 1 - own]]), weight[None, 1:] / weight[1:].sum()])
        theirs._sample_dirichlet = lambda _, draws=draws: next(draws)
        theirs._apply_image_or_video_transform = lambda i, *_, **__: v2.functional.invert(i)
        # Both cut fractions off, and both add in float32, so that a whole number may be missed.
        assert (theirs(image).int() - found.int()).abs().max() <= 1


def test_weights_of_augmix_are_beta_and_dirichlet():
    weights = blend_weights(3, 0.7, np.arange(4000), (1, 2))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert stats.kstest(weights[:, 0], stats.beta(0.7, 0.7).cdf).pvalue > 1e-3
    first = weights[:, 1] / weights[:, 1:].sum(axis=1)
    assert stats.kstest(first, stats.beta(0.7, 1.4).cdf).pvalue > 1e-3


def test_depth_is_drawn_evenly():
    plus = Operation(name="brightness", magnitude=0.1)
    policy = Policy(chains=(Chain(operations=(plus,)),), min_draws=1, draws=3)
    images = torch.full((3000, 3, 1, 1), 200, dtype=torch.uint8)
    out, _ = policy.augmenter(1)(images, torch.zeros(3000, dtype=torch.int64))
    # One step of ten per cent up or down from 200 ends at 220 or 180, two elsewhere, three again.
    one = np.isin(out[:, 0, 0, 0].numpy(), (220, 180)).mean()
    assert one == pytest.approx(1 / 3, abs=0.04)


def test_rand_augment_by_name():
    assert scheme("rand_augment(2,9)").identity == scheme("rand_augment").identity
    found = scheme("rand_augment(3, 5)+cutmix")
    assert found.draws == 3
    assert found.mixing is not None
    with pytest.raises(UserError, match="1 to 8 operations at level 0 to 30"):
        scheme("rand_augment(9,5)")
    with pytest.raises(UserError, match="1 to 8 operations at level 0 to 30"):
        scheme("rand_augment(2,31)")


def test_a_file_is_a_policy_too(tmp_path):
    scheme("cutout").save(tmp_path / "mine.json")
    assert policy_called(str(tmp_path / "mine.json")) == scheme("cutout")
    scheme("cutout").save(tmp_path / "mine.txt")
    assert policy_called(str(tmp_path / "mine.txt")) == scheme("cutout")
    with pytest.raises(UserError, match="cannot read the policy file"):
        policy_called("nowhere.JSON")


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
