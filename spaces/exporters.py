"""A policy as source code for another library, which then runs without Augury.

Every target is a table from our operations to its expressions over (image, magnitude, places); the
rest of the file that is written, drawing and applying, is the same for all. What a target has no
expression for is refused by name. The header states how many pixels equal our engine's, measured on
the very code that is written.
"""

import importlib.util
import textwrap
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spaces import randomness
from spaces.draws import NO_PLACES, Program, places
from spaces.errors import UserError, unknown_name
from spaces.kernels import Drawn, Resampling
from spaces.operations import OPERATIONS
from spaces.policy import Chain, Operation, Policy, Range
from spaces.targets import NEEDS, SHARED, TARGETS, Target

PARITY_IMAGES = 256


_DRAWING = '''
    def apply(image, steps):
        """Applies (name, signed magnitude, places) one after the other."""{before}
        for name, magnitude, places in steps:
            image = OPERATIONS[name](image, magnitude, places)
        return {after}


    def drawn(chain, rng):
        steps = []
        for name, magnitudes, signed, places, probability in chain:
            if rng.random() < probability:
                magnitude = rng.choice(magnitudes) * (rng.choice((-1, 1)) if signed else 1)
                steps.append((name, magnitude, [rng.random() for _ in range(places)]))
        return steps


    class PolicyTransform:
        """Call it with one image at a time: {image}."""

        def __init__(self, seed=None):
            self.rng = random.Random(seed)

        def __call__(self, image):
            {call}

        def _steps(self):
            weights = [weight for weight, _ in CHAINS]
            steps = []
            for _ in range(self.rng.randint(*DRAWS)):
                steps += drawn(self.rng.choices(CHAINS, weights)[0][1], self.rng)
            return steps
'''
_CALL = "return apply(image, drawn(BASE, self.rng) + self._steps())"
_BLENDED_CALL = """
image = apply(image, drawn(BASE, self.rng))
own, rest = (self.rng.gammavariate(ALPHA, 1) for _ in range(2))
shares = [self.rng.gammavariate(ALPHA, 1) for _ in range(WIDTH)]
mixed = own / (own + rest) * image
for share in shares:
    version = apply(image, self._steps())
    mixed += rest / (own + rest) * share / sum(shares) * version
return mixed.to(torch.uint8)
""".strip()


def convert(policy: Policy, to: str) -> str:
    """`policy` as Python source for the library `to`, with its parity in the header.

    Raises UserError where the library is unknown, not installed, or cannot express the policy.
    """
    if to not in TARGETS:
        raise unknown_name("target", to, TARGETS)
    target, policy = TARGETS[to], policy.normalised()
    if importlib.util.find_spec(target.package) is None:
        raise UserError(f"{to} is not installed, and the parity of its code must be measured")
    _refuse(policy, to, target)
    body = _source(policy, to, target)
    equal, off = parity(policy, target, body)
    # A name is the user's: it must not end the docstring that it stands in.
    title = f"Augmentation policy {policy}".replace("\\", "/").replace('"', "'")
    package = _DISTRIBUTIONS.get(to, to)
    library = f"{package} {version(package)}"
    header = (
        f'"""{textwrap.shorten(title, 90, placeholder=" ...")}\n\n'
        f"For {library}, written by Augury {version('augury')}; runs without it.\n"
        f"Parity: {100 * equal:.2f} % of pixels equal those of Augury, "
        f"the others differ by {off:.1f} of 255 on\naverage, measured on {PARITY_IMAGES} images of "
        f"{'x'.join(map(str, _size(policy)))} pixels with the same draws{_left_out(policy)}.\n"
        '"""\n'
    )
    return header + body


_DISTRIBUTIONS = {"python": "pillow"}


def _left_out(policy: Policy) -> str:
    parts = {"blend": policy.blend, "mixing": policy.mixing}
    found = [name for name, part in parts.items() if part]
    return f",\nbefore the {' and the '.join(found)}" if found else ""


def _refuse(policy: Policy, to: str, target: Target) -> None:
    names = [o.name for chain in (policy.base, *policy.chains) for o in chain.operations]
    missing = [name for name in dict.fromkeys(names) if name not in target.expressions]
    if missing:
        raise UserError(f"{to} has nothing that does what {', '.join(missing)} does")
    if policy.blend and not target.blends:
        raise UserError(f"{to} cannot express the blend of the policy ({policy.blend})")
    mixing = policy.mixing
    if mixing and not (target.mixes and mixing.name != "cutmix_pick" and mixing.per == "batch"):
        raise UserError(f"{to} cannot express the mixing of the policy ({mixing})")


def _source(policy: Policy, to: str, target: Target) -> str:
    names = [o.name for chain in (policy.base, *policy.chains) for o in chain.operations]
    used = {name: target.expressions[name] for name in dict.fromkeys(names)}
    parts = ["import math\nimport random\n"]
    parts[0] += "\n" + _dedented(target.imports.format(interpolation=policy.interpolation))
    parts[0] += f"\n\nFILL = {policy.fill}\n"
    parts += _shared(to, " ".join(used.values()))
    lines = [f'    "{n}": lambda image, magnitude, places: {code},' for n, code in used.items()]
    parts.append("\n".join(["OPERATIONS = {", *lines, "}\n"]))
    data = ["# operation, magnitudes, signed, places, probability", f"BASE = {_chain(policy.base)}"]
    data += ["CHAINS = ["]
    data += [f"    ({chain.weight!r}, {_chain(chain)})," for chain in policy.chains]
    data += ["]", f"DRAWS = {policy.min_draws or policy.draws}, {policy.draws}"]
    if policy.blend:
        data.append(f"WIDTH, ALPHA = {policy.blend.width}, {policy.blend.alpha!r}")
    parts.append("\n".join(data))
    call = textwrap.indent(_BLENDED_CALL if policy.blend else _CALL, " " * 8).lstrip()
    drawing = _dedented(_DRAWING).format(
        before="" if target.before == "image" else f"\n    image = {target.before}",
        after=target.after,
        image=target.image,
        call=call,
    )
    parts.append(drawing)
    if policy.mixing:
        parts.append(_mixing(policy))
    return "\n\n".join(part.strip("\n") + "\n" for part in parts)


def _mixing(policy: Policy) -> str:
    assert policy.mixing is not None
    name = {"cutmix": "CutMix", "mixup": "MixUp"}[policy.mixing.name]
    return _dedented(f"""
        def mixing(num_classes):
            \"\"\"For batches of images and labels, after the transform.\"\"\"
            mix = v2.{name}(alpha={policy.mixing.alpha!r}, num_classes=num_classes)
            return v2.RandomApply([mix], p={policy.mixing.probability!r})
    """)


def _shared(to: str, code: str) -> list[str]:
    wanted: list[str] = []

    def want(name: str) -> None:
        for needed in NEEDS.get(name, []):
            want(needed)
        if name not in wanted:
            wanted.append(name)

    for name in SHARED:
        if f"{name}(" in code or (name == "edges" and to == "python" and "covered(" in code):
            want(name)
    texts = [SHARED[name] for name in wanted]
    return [_dedented(text if isinstance(text, str) else text[to]) for text in texts]


def _dedented(text: str) -> str:
    return textwrap.dedent(text).strip("\n") + "\n"


def _chain(chain: Chain) -> str:
    return "[" + ", ".join(map(_operation, chain.operations)) + "]"


def _operation(operation: Operation) -> str:
    magnitude, kind = operation.magnitude, OPERATIONS[operation.name]
    values = [0.0 if magnitude is None else magnitude]
    if isinstance(magnitude, Range):
        values = np.linspace(magnitude.low, magnitude.high, magnitude.bins).tolist()
    return repr((operation.name, values, kind.signed, kind.places, operation.probability))


def _size(policy: Policy) -> tuple[int, int]:
    return policy.image_size or (32, 32)


def parity(policy: Policy, target: Target, source: str) -> tuple[float, float]:
    """The fraction of pixels that `source` makes equal to our engine given the same draws, and the
    mean absolute difference of the others, of 255. Mixing and blending are left out."""
    module: dict[str, Any] = {"__name__": "policy"}
    exec(compile(source, "policy", "exec"), module)
    images = _images(*_size(policy))
    equal, off = 0, 0.0
    for row, steps in enumerate(_steps(policy, len(images))):
        theirs = target.to_tensor(module["apply"](target.from_tensor(images[row]), steps))
        ours = _applied(images[row], steps, policy)
        difference = (theirs.int() - ours.int()).abs()
        equal, off = equal + int((difference == 0).sum()), off + float(difference.sum())
    return equal / images.numel(), off / max(images.numel() - equal, 1)


Steps = list[tuple[str, float, list[float]]]


def _steps(policy: Policy, count: int) -> list[Steps]:
    """What the engine draws for each of `count` images."""
    ids = np.arange(count)
    steps: list[Steps] = [[] for _ in range(count)]
    runs = [("base", Program((policy.base,)))]
    runs += [(str(draw), Program(policy.chains)) for draw in range(policy.draws)]
    for name, program in runs:
        chosen = program.choose(ids, (0, 0, name))
        for position in range(program.length):
            key = (0, 0, name, position)
            kinds, magnitudes = program.step(chosen, position, ids, key)
            for row in np.flatnonzero(kinds >= 0).tolist():
                kind = program.kinds[kinds[row]]
                placed = places(kind, ids[row : row + 1], key)[0] if kind.places else []
                steps[row].append((kind.name, float(magnitudes[row]), list(placed)))
    return steps


def _applied(image: Tensor, steps: Steps, policy: Policy) -> Tensor:
    from torchvision.transforms import InterpolationMode

    resampling = Resampling(InterpolationMode(policy.interpolation), policy.fill)
    images = image.unsqueeze(0)
    for name, magnitude, placed in steps:
        where = np.array([placed]) if placed else NO_PLACES
        images = OPERATIONS[name].kernel(images, Drawn(np.array([magnitude]), where, resampling))
    return images[0]


def _images(height: int, width: int) -> Tensor:
    """Smooth random pictures with some noise, uint8 (N, 3, H, W)."""
    rng = torch.Generator().manual_seed(randomness.key("parity") % 2**63)
    coarse = torch.rand(PARITY_IMAGES, 3, 5, 5, generator=rng)
    smooth = torch.nn.functional.interpolate(
        coarse, size=(height, width), mode="bicubic", align_corners=True
    )
    noise = torch.randn(smooth.shape, generator=rng) * 0.02
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)
