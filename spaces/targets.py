"""What other libraries call our operations: per target expressions over (image, magnitude, places).

An expression may use what the imports of its target define, and the functions of SHARED.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A library: what an image is there, its imports, and its expressions for our operations."""

    package: str
    image: str
    imports: str
    expressions: Mapping[str, str]
    before: str = "image"  # from an image of the caller's to what the expressions take
    after: str = "image"
    blends: bool = False
    mixes: bool = False
    from_tensor: Callable[[Tensor], Any] = field(default=lambda image: image)
    to_tensor: Callable[[Any], Tensor] = field(default=lambda image: image)


def _to_pil(image: Tensor) -> Any:
    from torchvision.transforms.v2 import functional as F

    return F.to_pil_image(image)


def _from_pil(image: Any) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    return F.pil_to_tensor(image)


def _to_numpy(image: Tensor) -> Any:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _from_numpy(image: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


_TV_AFFINE = (
    "F.affine(image, angle=0.0, translate={translate}, scale=1.0, shear={shear}, "
    "interpolation=INTERPOLATION, fill=FILL or None, center={center})"
)
_SLOPE = "math.degrees(math.atan(magnitude))"
_SIZE = "height(image), width(image)"

TARGETS: dict[str, Target] = {
    "torchvision": Target(
        package="torchvision",
        image="uint8 tensor (C, H, W)",
        imports="""
            import torch
            from torchvision.transforms import InterpolationMode, v2
            from torchvision.transforms.v2 import functional as F

            INTERPOLATION = InterpolationMode("{interpolation}")


            def height(image):
                return image.shape[-2]


            def width(image):
                return image.shape[-1]
        """,
        expressions={
            "shear_x": _TV_AFFINE.format(
                translate="[0, 0]", shear=f"[{_SLOPE}, 0.0]", center="[0, 0]"
            ),
            "shear_y": _TV_AFFINE.format(
                translate="[0, 0]", shear=f"[0.0, {_SLOPE}]", center="[0, 0]"
            ),
            "translate_x": _TV_AFFINE.format(
                translate="[int(magnitude * width(image)), 0]", shear="[0.0, 0.0]", center=None
            ),
            "translate_y": _TV_AFFINE.format(
                translate="[0, int(magnitude * height(image))]", shear="[0.0, 0.0]", center=None
            ),
            "rotate": "F.rotate(image, magnitude, INTERPOLATION, fill=FILL or None)",
            "brightness": "F.adjust_brightness(image, 1.0 + magnitude)",
            "color": "F.adjust_saturation(image, 1.0 + magnitude)",
            "contrast": "F.adjust_contrast(image, 1.0 + magnitude)",
            "sharpness": "F.adjust_sharpness(image, 1.0 + magnitude)",
            "posterize": "F.posterize(image, round(magnitude))",
            "solarize": "F.solarize(image, magnitude) if magnitude <= 255 else image",
            "autocontrast": "F.autocontrast(image)",
            "equalize": "F.equalize(image)",
            "invert": "F.invert(image)",
            "grayscale": "F.rgb_to_grayscale(image, num_output_channels=len(image))",
            "hue": "F.adjust_hue(image, magnitude)",
            "blur": f"F.gaussian_blur(image, [blur_size(magnitude, {_SIZE})] * 2, [magnitude] * 2)"
            " if magnitude else image",
            "flip": "F.horizontal_flip(image)",
            "crop": "F.crop(F.pad(image, margins(magnitude, image), fill=FILL), "
            "*corner(magnitude, places, image), height(image), width(image))",
            "resized_crop": f"F.resized_crop(image, *crop_box(magnitude, places, {_SIZE}), "
            f"[{_SIZE}], antialias=True)",
            "erase": f"covered(image, erase_box(magnitude, places, {_SIZE}))",
            "cutout": f"covered(image, cutout_box(magnitude, places, {_SIZE}))",
        },
        blends=True,
        mixes=True,
    ),
    "python": Target(
        package="PIL",
        image="PIL image, mode L or RGB",
        imports="""
            from PIL import Image, ImageEnhance, ImageFilter, ImageOps

            INTERPOLATION = Image.Resampling["{interpolation}".upper()]


            def height(image):
                return image.height


            def width(image):
                return image.width


            def fill(image):
                return FILL if image.mode == "L" else (FILL,) * 3


            def warped(image, matrix):
                return image.transform(
                    image.size, Image.Transform.AFFINE, matrix, INTERPOLATION, fillcolor=fill(image)
                )


            def turned(image, magnitude):
                if image.mode == "L":
                    return image
                hue, saturation, value = image.convert("HSV").split()
                hue = hue.point([(v + int(magnitude * 255)) % 256 for v in range(256)])
                return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        """,
        expressions={
            "shear_x": "warped(image, (1, magnitude, 0, 0, 1, 0))",
            "shear_y": "warped(image, (1, 0, 0, magnitude, 1, 0))",
            "translate_x": "warped(image, (1, 0, -int(magnitude * image.width), 0, 1, 0))",
            "translate_y": "warped(image, (1, 0, 0, 0, 1, -int(magnitude * image.height)))",
            "rotate": "image.rotate(magnitude, INTERPOLATION, fillcolor=fill(image))",
            "brightness": "ImageEnhance.Brightness(image).enhance(1 + magnitude)",
            "color": "ImageEnhance.Color(image).enhance(1 + magnitude)",
            "contrast": "ImageEnhance.Contrast(image).enhance(1 + magnitude)",
            "sharpness": "ImageEnhance.Sharpness(image).enhance(1 + magnitude)",
            "posterize": "ImageOps.posterize(image, round(magnitude))",
            "solarize": "ImageOps.solarize(image, magnitude)",
            "autocontrast": "ImageOps.autocontrast(image)",
            "equalize": "ImageOps.equalize(image)",
            "invert": "ImageOps.invert(image)",
            "grayscale": 'image.convert("L").convert(image.mode)',
            "hue": "turned(image, magnitude)",
            "blur": "image.filter(ImageFilter.GaussianBlur(magnitude))",
            "flip": "ImageOps.mirror(image)",
            "crop": "ImageOps.expand(image, tuple(margins(magnitude, image)), fill(image)).crop("
            "spanned(corner(magnitude, places, image), image))",
            "resized_crop": "image.resize(image.size, Image.Resampling.BILINEAR, "
            f"edges(crop_box(magnitude, places, {_SIZE})))",
            "erase": f"covered(image, erase_box(magnitude, places, {_SIZE}))",
            "cutout": f"covered(image, cutout_box(magnitude, places, {_SIZE}))",
        },
        from_tensor=_to_pil,
        to_tensor=_from_pil,
    ),
    "kornia": Target(
        package="kornia",
        image="uint8 tensor (3, H, W)",
        imports="""
            import torch
            from kornia import color, enhance, filters, geometry


            def height(image):
                return image.shape[-2]


            def width(image):
                return image.shape[-1]


            def warped(image, matrix):
                options = dict(mode="{interpolation}", align_corners=True)
                if FILL:
                    options |= dict(padding_mode="fill", fill_value=torch.full((3,), FILL / 255))
                return geometry.warp_affine(
                    image, torch.tensor([matrix]), (height(image), width(image)), **options
                )


            def rotated(image, magnitude):
                angle = math.radians(magnitude)
                c, s = math.cos(angle), math.sin(angle)
                x, y = (width(image) - 1) / 2, (height(image) - 1) / 2
                return warped(image, [[c, s, x - c * x - s * y], [-s, c, y + s * x - c * y]])
        """,
        before="image.unsqueeze(0).float() / 255",
        after="(image.squeeze(0) * 255).round().clamp(0, 255).to(torch.uint8)",
        expressions={
            "shear_x": "warped(image, [[1.0, -magnitude, -magnitude / 2], [0.0, 1.0, 0.0]])",
            "shear_y": "warped(image, [[1.0, 0.0, 0.0], [-magnitude, 1.0, -magnitude / 2]])",
            "translate_x": "warped(image, [[1.0, 0.0, float(int(magnitude * width(image)))], "
            "[0.0, 1.0, 0.0]])",
            "translate_y": "warped(image, [[1.0, 0.0, 0.0], "
            "[0.0, 1.0, float(int(magnitude * height(image)))]])",
            "rotate": "rotated(image, magnitude)",
            "brightness": "enhance.adjust_brightness_accumulative(image, 1 + magnitude)",
            "color": "enhance.adjust_saturation_with_gray_subtraction(image, 1 + magnitude)",
            "contrast": "enhance.adjust_contrast_with_mean_subtraction(image, 1 + magnitude)",
            "sharpness": "enhance.sharpness(image, 1 + magnitude)",
            "posterize": "enhance.posterize(image, round(magnitude))",
            "solarize": "enhance.solarize(image, magnitude / 255) if magnitude <= 255 else image",
            "autocontrast": "enhance.normalize_min_max(image)",
            "equalize": "enhance.equalize(image)",
            "invert": "enhance.invert(image)",
            "grayscale": "color.rgb_to_grayscale(image).expand_as(image)",
            "hue": "enhance.adjust_hue(image, 2 * math.pi * magnitude)",
            "blur": f"filters.gaussian_blur2d(image, (blur_size(magnitude, {_SIZE}),) * 2, "
            "(magnitude,) * 2) if magnitude else image",
            "flip": "geometry.hflip(image)",
        },
    ),
    "albumentations": Target(
        package="albumentations",
        image="numpy array (H, W, 3), uint8",
        imports="""
            import albumentations as A
            import cv2

            CODES = {{"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR}}
            INTERPOLATION = CODES["{interpolation}"]


            def height(image):
                return image.shape[0]


            def width(image):
                return image.shape[1]


            def once(transform, image):
                return transform(image=image)["image"]


            def affine(image, **moves):
                still = dict(scale=1, rotate=0, shear=0, translate_px=0, fill=FILL, p=1)
                return once(A.Affine(**still | dict(interpolation=INTERPOLATION) | moves), image)


            def shifted(image, x, y):
                return affine(image, translate_px=dict(x=x, y=y))


            def jitter(image, **change):
                still = dict(brightness=(1, 1), contrast=(1, 1), saturation=(1, 1), hue=(0, 0), p=1)
                return once(A.ColorJitter(**still | change), image)
        """,
        expressions={
            "translate_x": "shifted(image, int(magnitude * width(image)), 0)",
            "translate_y": "shifted(image, 0, int(magnitude * height(image)))",
            "rotate": "affine(image, rotate=(magnitude, magnitude))",
            "brightness": "jitter(image, brightness=(1 + magnitude,) * 2)",
            "color": "jitter(image, saturation=(1 + magnitude,) * 2)",
            "contrast": "jitter(image, contrast=(1 + magnitude,) * 2)",
            "hue": "jitter(image, hue=(magnitude, magnitude))",
            "posterize": "once(A.Posterize(num_bits=round(magnitude), p=1), image)"
            " if round(magnitude) < 8 else image",
            "solarize": "once(A.Solarize(threshold_range=(magnitude / 255,) * 2, p=1), image)"
            " if magnitude <= 255 else image",
            "autocontrast": 'once(A.AutoContrast(method="pil", p=1), image)',
            "equalize": 'once(A.Equalize(mode="pil", p=1), image)',
            "invert": "once(A.InvertImg(p=1), image)",
            "grayscale": "once(A.ToGray(p=1), image)",
            "flip": "once(A.HorizontalFlip(p=1), image)",
        },
        from_tensor=_to_numpy,
        to_tensor=_from_numpy,
    ),
    "timm": Target(
        package="timm",
        image="PIL image, mode RGB",
        imports="""
            from PIL import Image
            from timm.data import auto_augment as T

            INTERPOLATION = Image.Resampling["{interpolation}".upper()]


            def options():
                return dict(resample=INTERPOLATION, fillcolor=(FILL,) * 3)
        """,
        expressions={
            "shear_x": "T.shear_x(image, magnitude, **options())",
            "shear_y": "T.shear_y(image, magnitude, **options())",
            "translate_x": "T.translate_x_abs(image, -int(magnitude * image.width), **options())",
            "translate_y": "T.translate_y_abs(image, -int(magnitude * image.height), **options())",
            "rotate": "T.rotate(image, magnitude, **options())",
            "brightness": "T.brightness(image, 1 + magnitude)",
            "color": "T.color(image, 1 + magnitude)",
            "contrast": "T.contrast(image, 1 + magnitude)",
            "sharpness": "T.sharpness(image, 1 + magnitude)",
            "posterize": "T.posterize(image, round(magnitude))",
            "solarize": "T.solarize(image, magnitude)",
            "autocontrast": "T.auto_contrast(image)",
            "equalize": "T.equalize(image)",
            "invert": "T.invert(image)",
        },
        from_tensor=_to_pil,
        to_tensor=_from_pil,
    ),
}

# What several targets draw or compute alike, written only where an expression asks for it.
SHARED: dict[str, str | dict[str, str]] = {
    "blur_size": """
        def blur_size(sigma, *sides):
            return 2 * min(max(round(3 * sigma), 1), min(sides) - 1) + 1
    """,
    "margins": """
        def margins(magnitude, image):
            return [round(magnitude * width(image)), round(magnitude * height(image))] * 2
    """,
    "corner": """
        def corner(magnitude, places, image):
            x, y = margins(magnitude, image)[:2]
            return int(places[0] * (2 * y + 1)), int(places[1] * (2 * x + 1))
    """,
    "spanned": """
        def spanned(corner, image):
            return corner[1], corner[0], corner[1] + width(image), corner[0] + height(image)
    """,
    "box": '''
        def box(places, area, ratio, high, wide, fits):
            """(top, left, height, width) of the first of ten draws that fits, or None."""
            for share, bend in zip(places[:10], places[10:20]):
                pixels = (area[0] + share * (area[1] - area[0])) * high * wide
                aspect = math.exp(math.log(ratio[0]) + bend * math.log(ratio[1] / ratio[0]))
                long, short = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
                h, w = (long, short) if fits == "erase" else (short, long)
                least, spare = (0, 1) if fits == "erase" else (1, 0)
                if least <= h <= high - spare and least <= w <= wide - spare:
                    return int(places[20] * (high - h + 1)), int(places[21] * (wide - w + 1)), h, w
            return None
    ''',
    "crop_box": """
        def crop_box(magnitude, places, high, wide):
            found = box(places, (magnitude, 1), (3 / 4, 4 / 3), high, wide, "crop")
            if found:
                return found
            h = round(wide / (3 / 4)) if wide / high < 3 / 4 else high
            w = round(high * 4 / 3) if wide / high > 4 / 3 else wide
            return (high - h) // 2, (wide - w) // 2, h, w
    """,
    "erase_box": """
        def erase_box(magnitude, places, high, wide):
            area = min(magnitude, 0.02), magnitude
            return box(places, area, (0.3, 3.3), high, wide, "erase") or (0, 0, 0, 0)
    """,
    "cutout_box": """
        def cutout_box(magnitude, places, high, wide):
            side = round(magnitude * min(high, wide))
            top, left = int(places[0] * high) - side // 2, int(places[1] * wide) - side // 2
            bottom, right = min(max(top + side, 0), high), min(max(left + side, 0), wide)
            top, left = max(top, 0), max(left, 0)
            return top, left, bottom - top, right - left
    """,
    "edges": """
        def edges(box):
            return box[1], box[0], box[1] + box[3], box[0] + box[2]
    """,
    "covered": {
        "torchvision": """
            def covered(image, box):
                image, (top, left, high, wide) = image.clone(), box
                image[..., top : top + high, left : left + wide] = FILL
                return image
        """,
        "python": """
            def covered(image, box):
                image = image.copy()
                if box[2] and box[3]:
                    image.paste(fill(image), edges(box))
                return image
        """,
    },
}
NEEDS = {"corner": ["margins"], "crop_box": ["box"], "erase_box": ["box"]}
