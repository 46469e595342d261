"""Policies as code for other libraries: each file is run by its own library, without ours."""

import ast
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from spaces import Chain, Operation, Policy, UserError, scheme
from spaces.exporters import _applied, _images, _steps, convert
from spaces.operations import OPERATIONS
from spaces.schemes import SCHEMES
from spaces.targets import TARGETS

# Reads images and draws, applies the code that was written, and tells what it imported.
RUNNER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import policy_code as code
kind, content = sys.argv[1], json.load(open("steps.json"))
images = np.load("images.npy")
def give(image):
    if kind == "pil":
        from PIL import Image
        return Image.fromarray(image)
    if kind == "tensor":
        import torch
        return torch.from_numpy(image).permute(2, 0, 1).contiguous()
    return image
def take(image):
    return image.permute(1, 2, 0).numpy() if kind == "tensor" else np.asarray(image)
out = [take(code.apply(give(i), steps)) for i, steps in zip(images, content)]
np.save("out.npy", np.stack(out))
transform = code.PolicyTransform(seed=1)
again = code.PolicyTransform(seed=1)
for image in images[:20]:
    assert (take(transform(give(image))) == take(again(give(image)))).all()
print(sorted(m for m in ("spaces", "trainers", "search", "ray") if m in sys.modules))
"""
KIND = {"torchvision": "tensor", "kornia": "tensor", "albumentations": "numpy"}


def expressible(target: str) -> Policy:
    """A policy of every operation that `target` knows, at several magnitudes."""
    operations = []
    for name in TARGETS[target].expressions:
        kind = OPERATIONS[name]
        for strength in (0.3, 0.8) if kind.has_magnitude else (1.0,):
            magnitude = kind.at_strength(strength) if kind.has_magnitude else None
            operations.append(Operation(name=name, magnitude=magnitude, probability=0.9))
    return Policy(chains=tuple(Chain(operations=(o,)) for o in operations), draws=2, fill=40)


@pytest.mark.parametrize("target", TARGETS)
def test_the_code_runs_without_us_and_does_what_its_header_says(target, tmp_path):
    policy = expressible(target)
    source = convert(policy, target)
    stated = float(source.split("Parity: ")[1].split(" %")[0]) / 100
    images, normal = _images(32, 32), policy.normalised()
    steps = _steps(normal, len(images))
    (tmp_path / "policy_code.py").write_text(source)
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    np.save(tmp_path / "images.npy", images.permute(0, 2, 3, 1).numpy())
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, KIND.get(target, "pil")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")  # none of ours was imported
    found = torch.from_numpy(np.load(tmp_path / "out.npy")).permute(0, 3, 1, 2)
    ours = torch.stack([_applied(i, s, normal) for i, s in zip(images, steps, strict=True)])
    equal = float((found == ours).double().mean())
    assert equal == pytest.approx(stated, abs=1e-4)
    assert equal > {"torchvision": 0.999999, "python": 0.8, "timm": 0.85}.get(target, 0.6)
    assert float((found.int() - ours.int()).abs().double().mean()) < 3


def test_the_engine_and_the_steps_that_parity_is_measured_on_agree():
    policy = scheme("rand_augment").normalised()
    images = _images(16, 16)
    steps = _steps(policy, len(images))
    assert {name for row in steps for name, _, _ in row} > {"rotate", "equalize"}
    signs = [m for row in steps for name, m, _ in row if name == "rotate"]
    assert min(signs) < 0 < max(signs)
    one = _applied(images[0], [("invert", 0.0, []), ("rotate", 90.0, [])], policy)
    assert torch.equal(one, F.rotate(F.invert(images[0]), 90.0))


@pytest.mark.parametrize("name", [n for n in SCHEMES if n != "cutmix_pick"])
def test_torchvision_expresses_every_scheme(name, tmp_path):
    source = convert(scheme(name), "torchvision")
    assert "Parity: 100.00 %" in source
    code: dict = {"__name__": "code"}
    exec(compile(source, name, "exec"), code)
    image = _images(24, 24)[0]
    out = code["PolicyTransform"](seed=0)(image)
    assert (out.shape, out.dtype) == (image.shape, torch.uint8)
    header = ast.get_docstring(ast.parse(source))
    assert ("before the mixing" in header) == bool(scheme(name).mixing)
    if scheme(name).mixing:
        _, targets = code["mixing"](10)(_images(8, 8)[:4].float(), torch.arange(4))
        assert targets.shape == (4, 10)


@pytest.mark.parametrize(
    ("name", "target", "sentence"),
    [
        ("flip_crop", "kornia", "kornia has nothing that does what crop does"),
        ("flip_crop", "timm", "timm has nothing that does what crop, flip does"),
        ("trivial_augment", "albumentations", "what sharpness, shear_x, shear_y does"),
        ("augmix", "python", "python cannot express the blend of the policy"),
        ("rand_augment+cutmix", "kornia", "kornia cannot express the mixing of the policy"),
        ("cutmix_pick", "torchvision", "cannot express the mixing of the policy .cutmix_pick."),
        ("none", "tensorflow", "unknown target 'tensorflow': did you mean"),
    ],
)
def test_what_a_library_cannot_express_is_refused_by_name(name, target, sentence):
    with pytest.raises(UserError, match=sentence):
        convert(scheme(name), target)


@pytest.mark.parametrize("name", ['"""; import os', "back\\", "'quoted'", "x" * 300])
def test_a_name_stays_within_its_docstring(name):
    source = convert(scheme("flip_crop").model_copy(update={"name": name}), "torchvision")
    first = ast.parse(source).body
    assert isinstance(first[0], ast.Expr)
    assert isinstance(first[1], ast.Import)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="kornia is not installed"):
        convert(scheme("none"), "kornia")
