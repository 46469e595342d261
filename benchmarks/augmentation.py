"""How many images a second the engine augments, against the peers, each in the same run.

    python benchmarks/augmentation.py [--size 32 ...] [--rounds 9]

Everything runs on one thread, TrivialAugment (wide) and RandAugment(2, 9) on the same images:

    ours           a batch, an operation and a magnitude for each image
    v2 tensor      torchvision.transforms.v2 on single uint8 tensors
    v2 PIL         torchvision.transforms.v2 on single PIL images
    kornia         kornia's TrivialAugment on the batch as floats, one operation for all of it

In every round each contestant does a share of the work, in turn, so that a busy machine slows them
alike, and seconds are those of the processor. A rate is all images over all seconds, since the
operations drawn cost from nothing to much; a round draws the same ones in every run. Conversions
that a peer needs before it starts are not counted. The last line is one JSON object; its ratios are
ours over the peer at 32 pixels.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torchvision.transforms import v2

from spaces import scheme

SECONDS = 0.4  # of one contestant in one round
BATCH = {32: 512, 64: 512, 96: 256, 224: 128}


def images_of(size: int, count: int) -> torch.Tensor:
    """Smooth random images, uint8 (N, 3, H, W)."""
    rng = torch.Generator().manual_seed(size)
    coarse = torch.rand(count, 3, size // 4, size // 4, generator=rng) * 255
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").byte()


def contestants(size: int) -> dict[str, dict[str, tuple[Callable[[], object], int]]]:
    """By scheme and name: a piece of work, and the images in it."""
    images = images_of(size, BATCH.get(size, 128))
    labels = torch.zeros(len(images), dtype=torch.int64)
    few = images[:64]
    pil = [v2.functional.to_pil_image(image) for image in few]
    peers: dict[str, tuple[str, v2.Transform]] = {
        "trivial_augment": ("TrivialAugmentWide", v2.TrivialAugmentWide()),
        "rand_augment": ("RandAugment(2, 9)", v2.RandAugment(2, 9)),
    }
    found: dict[str, dict[str, tuple[Callable[[], object], int]]] = {}
    for name, (_, transform) in peers.items():
        augment = scheme(name).augmenter(num_classes=10)
        found[name] = {
            "ours": (lambda a=augment: a(images, labels), len(images)),
            "v2_tensor": (lambda t=transform: [t(image) for image in few], len(few)),
            "v2_pil": (lambda t=transform: [t(image) for image in pil], len(pil)),
        }
    kornia = _kornia(images)
    if kornia is not None:
        found["trivial_augment"]["kornia"] = kornia
    return found


def _kornia(images: torch.Tensor) -> tuple[Callable[[], object], int] | None:
    try:
        from kornia.augmentation.auto import TrivialAugment
    except ImportError:
        print("kornia is not installed: pip install -e '.[peers]'")
        return None
    floats, transform = images.float() / 255, TrivialAugment()
    return lambda: transform(floats), len(images)


def share(work: Callable[[], object], count: int, seed: int) -> tuple[int, float]:
    """Images done and seconds taken, a little more than SECONDS."""
    torch.manual_seed(seed)
    done, started = 0, time.process_time()
    while (spent := time.process_time() - started) < SECONDS:
        work()
        done += count
    return done, spent


def measure(size: int, rounds: int) -> dict[str, dict[str, float]]:
    entrants = contestants(size)
    shares: dict[str, dict[str, list[tuple[int, float]]]] = {
        name: {who: [] for who in works} for name, works in entrants.items()
    }
    for works in entrants.values():  # caches, index maps, lazy imports
        for who, (work, _) in works.items():
            for _ in range(10 if who == "ours" else 1):
                work()
    for seed in range(rounds):
        for name, works in entrants.items():
            for who, (work, count) in works.items():
                shares[name][who].append(share(work, count, seed))
    return {
        name: {
            who: sum(images for images, _ in parts) / sum(seconds for _, seconds in parts)
            for who, parts in found.items()
        }
        for name, found in shares.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[32, 64, 96, 224])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, object] = {}
    for size in options.size:
        for name, found in measure(size, options.rounds).items():
            ours = found.pop("ours")
            ratios = {f"vs_{who}": round(ours / value, 1) for who, value in found.items()}
            peers = "  ".join(
                f"{who} {value:,.0f}/s ({ratios[f'vs_{who}']}x)" for who, value in found.items()
            )
            print(f"{size:4d} px  {name:16s} ours {ours:,.0f}/s  {peers}", flush=True)
            if size == 32:
                figures |= (
                    ratios
                    if name == "trivial_augment"
                    else {f"{name}_vs_v2_tensor": ratios["vs_v2_tensor"]}
                )
            figures[f"{name}_{size}"] = {"images_per_second": round(ours)} | ratios
    figures |= {"machine": processor(), "torch": torch.__version__, "date": str(date.today())}
    Path(__file__).with_name("results").mkdir(exist_ok=True)
    text = json.dumps(figures)
    (Path(__file__).parent / "results" / "augmentation.json").write_text(text + "\n")
    print(text)


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
