"""Image files and parquet in the layouts that people have, and every odd file in them."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from spaces import UserError
from trainers.datasets import ImageSplits, load_splits
from trainers.datasets.config import FolderConfig, ParquetConfig, TinyImageNetConfig
from trainers.datasets.decoding import BadImageError, decoded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    channels = {"RGB": (3,), "L": (), "CMYK": (4,), "RGBA": (4,), "LA": (2,)}[mode]
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, *channels), dtype=np.uint8)
    return (
        Image.fromarray(coarse, mode=None).resize(size)
        if mode == "RGB"
        else Image.frombytes(mode, (4, 5), coarse.tobytes()).resize(size)
    )


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def animation() -> bytes:
    frames = [picture(n) for n in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def write_tree(root: Path, per_class: int = 10, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(per_class):
            (root / name / f"{n}.png").write_bytes(encoded(picture(100 * label + n)))
    return root


def sizes(splits: ImageSplits) -> list[int]:
    parts = (splits.train, splits.student, splits.validation, splits.test)
    return [len(part.labels) for part in parts]


def config_of(root: Path, **changes: object) -> FolderConfig:
    return FolderConfig(path=root, **{"image_size": 16, "validation_images": 0.2} | changes)


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (16, 16), (9, 33), (100, 37)])
def test_pixels_are_those_of_torchvisions_resize_and_crop(size):
    image = picture(1, size=size)
    reference = v2.Compose([v2.Resize(16), v2.CenterCrop(16), v2.PILToTensor()])(image)
    assert torch.equal(torch.from_numpy(decoded(encoded(image), 16).pixels), reference)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA"])
def test_grey_and_transparent_images_have_three_channels(mode):
    image = picture(2, mode, size=(16, 16))
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decoded(encoded(image), 16).pixels, expected)


def test_a_palette_with_transparency_is_its_colours():
    image = picture(3, size=(16, 16)).quantize(8)
    content = encoded(image, "PNG", transparency=bytes(range(8)))
    assert np.array_equal(
        decoded(content, 16).pixels, np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    )


def test_cmyk_is_converted_and_told():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red ink
    found = decoded(encoded(image, "JPEG", quality=95), 16)
    assert found.cmyk
    assert found.pixels.mean(axis=(1, 2)) == pytest.approx([255, 0, 0], abs=6)


def test_sixteen_bits_keep_their_range_and_are_told():
    ramp = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1))
    found = decoded(encoded(Image.fromarray(ramp)), 16)
    assert found.sixteen_bit
    assert found.pixels[:, 0].tolist() == [np.round(ramp[0] / 257).astype(int).tolist()] * 3
    assert not decoded(encoded(picture(0)), 16).sixteen_bit


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"GIF? no", "no image"),
        (encoded(picture(0), "JPEG")[:-300], "truncated"),
        (encoded(picture(0), "PNG")[:200], "truncated"),
        (encoded(picture(0, size=(40, 7))), "smaller than 8 pixels"),
        (animation(), "animated"),
        (encoded(Image.new("F", (16, 16)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.full((9, 9), 70_000, np.int32)), "TIFF"), "more than 16 bits"),
    ],
)
def test_what_cannot_be_used_has_a_reason(content, reason):
    with pytest.raises(BadImageError, match=reason):
        decoded(content, 16)


def test_a_tree_without_parts_is_split_by_class(tmp_path):
    splits = load_splits(config_of(write_tree(tmp_path / "data"), test_images=4, student_images=6))
    assert sizes(splits) == [12, 6, 4, 4]
    for part in (splits.train, splits.student, splits.validation, splits.test):
        assert part.labels.bincount().tolist() == [len(part.labels) // 2] * 2
    images = [
        image.numpy().tobytes()
        for part in (splits.train, splits.validation, splits.test)
        for image in part.images
    ]
    assert len(set(images)) == 20
    assert splits.image_size == (16, 16)


def test_a_tree_with_parts_keeps_them(tmp_path):
    root = tmp_path / "data"
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        write_tree(root / part, count)
    assert sizes(load_splits(config_of(root))) == [10, 10, 6, 4]


def test_labels_belong_to_their_images(tmp_path):
    root = write_tree(tmp_path / "data")
    splits = load_splits(config_of(root))
    classes = {
        decoded((root / name / f"{n}.png").read_bytes(), 16).pixels.tobytes(): label
        for label, name in enumerate(("cat", "dog"))
        for n in range(10)
    }
    for image, label in zip(*splits.train, strict=True):
        assert classes[image.numpy().tobytes()] == label


def test_odd_images_are_counted_and_named(tmp_path):
    root = write_tree(tmp_path / "data", per_class=30)
    (root / "cat" / "30.jpg").write_bytes(encoded(picture(7, "CMYK"), "JPEG"))
    (root / "cat" / "31.png").write_bytes(encoded(Image.fromarray(np.zeros((9, 9), np.uint16))))
    (root / "dog" / "30.jpg").write_bytes(encoded(picture(8), "JPEG")[:-300])
    (root / "dog" / "31.gif").write_bytes(animation())
    splits = load_splits(config_of(root, bad_images=0.05))
    assert sum(sizes(splits)) - len(splits.student.labels) == 62
    assert splits.notes == (
        "train: 2 of 64 images left out: dog/30.jpg (truncated or corrupt), dog/31.gif (animated)",
        "train: 1 CMYK images converted to 8-bit RGB",
        "train: 1 16-bit images converted to 8-bit RGB",
    )
    with pytest.raises(UserError, match=r"data.bad_images: .* 2 of the 64 .* dog/30.jpg"):
        load_splits(config_of(root))  # by default one in a hundred; from the cache
    with pytest.raises(UserError, match=r"more than 0\.01 of all: dog/30.jpg \(truncated"):
        load_splits(config_of(root, image_size=24))  # while it is decoded


def test_folders_that_cannot_be_are_refused_in_a_sentence(tmp_path):
    def refuse(root: Path, sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            load_splits(config_of(root, bad_images=0))

    refuse(tmp_path / "nowhere", "data.path: .*nowhere is no folder")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    refuse(tmp_path / "empty", "empty: has no folder with images")
    single = write_tree(tmp_path / "single", 6)
    write_tree(single, 1, ("emu",))
    refuse(single, "class with one image cannot be split into train and validation and test: emu")
    refuse(write_tree(tmp_path / "one", 6, ("cat",)), "one class, cat, and a classifier needs two")
    foreign = tmp_path / "foreign"
    write_tree(foreign / "train", 6)
    write_tree(foreign / "val", 2, ("cat", "gnu"))
    refuse(foreign, "validation part has classes that train lacks: gnu")
    tiny = tmp_path / "tiny"
    for name in ("a", "b"):
        (tiny / name).mkdir(parents=True)
        (tiny / name / "x.png").write_bytes(encoded(picture(0, size=(7, 7))))
    refuse(tiny, "smaller than 8 pixels")


def test_a_class_of_which_no_image_can_be_used_is_named(tmp_path):
    root = write_tree(tmp_path / "data", 4, ("cat", "dog", "emu"))
    for path in (root / "emu").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="misses class emu: add images, or mend those"):
        load_splits(config_of(root, bad_images=0.5))


def test_pictures_of_trains_are_a_class_where_other_classes_lie_beside(tmp_path):
    root = write_tree(tmp_path / "vehicles", 10, ("car", "train"))
    assert load_splits(config_of(root)).num_classes == 2
    flat = write_tree(tmp_path / "flat", 3, ("train", "test"))
    with pytest.raises(UserError, match="train: has no folder with images"):
        load_splits(config_of(flat))


def test_names_of_files_need_not_be_unicode(tmp_path):
    root = write_tree(tmp_path / "data")
    Path(os.fsdecode(os.fsencode(root / "cat") + b"/\xff.png")).write_bytes(b"")
    splits = load_splits(config_of(root, bad_images=0.1))
    assert splits.notes == (r"train: 1 of 21 images left out: cat/\udcff.png (empty)",)


def write_tiny_imagenet(root: Path) -> Path:
    lines = []
    (root / "val" / "images").mkdir(parents=True)
    for label, wnid in enumerate(("n01443537", "n01629819")):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{wnid}_boxes.txt").write_text("")
        for n in range(8):
            image = encoded(picture(50 * label + n, size=(64, 64)), "JPEG")
            (folder / f"{wnid}_{n}.JPEG").write_bytes(image)
        for n in range(2):
            name = f"val_{2 * n + label}.JPEG"
            image = encoded(picture(900 + 50 * label + n, size=(64, 64)), "JPEG")
            (root / "val" / "images" / name).write_bytes(image)
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenets_val_is_the_test_part(tmp_path):
    root = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    splits = load_splits(TinyImageNetConfig(path=root, validation_images=4))
    assert sizes(splits) == [12, 12, 4, 4]
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    content = (root / "val" / "images" / "val_1.JPEG").read_bytes()
    assert splits.test.images[2].numpy().tobytes() == decoded(content, 64).pixels.tobytes()


def test_tiny_imagenets_val_as_people_have_it(tmp_path):
    root = write_tiny_imagenet(tmp_path / "data")
    config = TinyImageNetConfig(path=root, validation_images=4)
    expected = load_splits(config).content_hash
    annotations = root / "val" / "val_annotations.txt"
    lines = annotations.read_text().splitlines()
    odd = "\ufeff" + "\r\n".join(line.replace("\t", " ") for line in lines) + "\r\n\r\n"
    annotations.write_text(odd, encoding="utf-8")
    assert load_splits(config).content_hash == expected
    annotations.write_text("")
    with pytest.raises(UserError, match="the test part of the data has no images"):
        load_splits(config)
    for line in lines:
        name, wnid = line.split()[:2]
        folder = root / "val" / wnid / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(folder / name)
    (root / "val" / "images").rmdir()
    assert load_splits(config).test.labels.tolist() == [0, 0, 1, 1]


def test_what_is_wrong_in_tiny_imagenet_is_named(tmp_path):
    root = write_tiny_imagenet(tmp_path / "data")
    annotations = root / "val" / "val_annotations.txt"
    text = annotations.read_text()
    for line, sentence in (
        ("val_0.JPEG\tn01629818\t0\n", "line 5: did you mean 'n01629819'"),
        ("val_9.JPEG\tn01629819\t0\n", "line 5: should name a file"),
        ("val_0.JPEG\n", "line 5: should name a file"),
    ):
        annotations.write_text(text + line)
        with pytest.raises(UserError, match=sentence):
            load_splits(TinyImageNetConfig(path=root))
    annotations.unlink()
    with pytest.raises(UserError, match=r"has no val/val_annotations.txt"):
        load_splits(TinyImageNetConfig(path=root))


def table(labels: list | pa.Array, images: list[bytes], struct: bool = True) -> pa.Table:
    column = (
        pa.array(
            [{"bytes": image, "path": None} for image in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        if struct
        else pa.array(images, pa.binary())
    )
    return pa.table({"image": column, "label": labels})


def pictures(count: int, first: int = 0) -> list[bytes]:
    return [encoded(picture(first + n)) for n in range(count)]


def test_shards_of_parquet_are_parts_across_row_groups(tmp_path):
    images = pictures(20)
    for shard in (0, 1):
        rows = slice(10 * shard, 10 * shard + 10)
        path = tmp_path / f"train-0000{shard}-of-00002.parquet"
        pq.write_table(
            table([n % 2 for n in range(20)][rows], images[rows]), path, row_group_size=3
        )
    pq.write_table(table([0, 1] * 2, pictures(4, 50)), tmp_path / "valid-00000-of-00001.parquet")
    pq.write_table(table([1, 0], pictures(2, 60)), tmp_path / "test-00000-of-00001.parquet")
    splits = load_splits(ParquetConfig(path=tmp_path, image_size=16))
    assert sizes(splits) == [20, 20, 4, 2]
    expected = [decoded(image, 16).pixels for image in images]
    assert np.array_equal(splits.train.images.numpy(), np.stack(expected))
    assert splits.train.labels.tolist() == [0, 1] * 10


def test_a_file_of_binary_images_and_names_is_split(tmp_path):
    path = tmp_path / "all.parquet"
    names = pa.array(["dog", "cat"] * 10).dictionary_encode()  # as pandas writes a categorical
    pq.write_table(table(names, pictures(20), struct=False), path)
    splits = load_splits(
        ParquetConfig(path=path, image_size=16, validation_images=4, test_images=4)
    )
    assert sizes(splits) == [12, 12, 4, 4]
    assert splits.num_classes == 2


def test_the_names_of_a_class_label_count_the_classes(tmp_path):
    features = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    written = table([0, 1] * 10, pictures(20)).replace_schema_metadata(
        {"huggingface": json.dumps(features)}
    )
    pq.write_table(written, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="misses class c"):
        load_splits(ParquetConfig(path=tmp_path / "x.parquet", image_size=16))
    unlabelled = table([-1, 1], pictures(2)).replace_schema_metadata(written.schema.metadata)
    pq.write_table(unlabelled, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="the train part has labels that are no class: -1"):
        load_splits(ParquetConfig(path=tmp_path / "x.parquet", image_size=16))


def test_what_is_wrong_in_parquet_is_named(tmp_path):
    path = tmp_path / "x.parquet"

    def refuse(written: pa.Table, sentence: str, **changes: object) -> None:
        pq.write_table(written, path)
        with pytest.raises(UserError, match=sentence):
            load_splits(ParquetConfig(path=path, image_size=16, **changes))

    good = table([0, 1] * 10, pictures(20))
    refuse(good, "unknown column 'labl' .*did you mean 'label'", label_column="labl")
    refuse(good, "label should be encoded images, is int64", image_column="label")
    refuse(table([0.5] * 20, pictures(20)), "label should be numbers or texts, is double")
    refuse(table([0, None] * 10, pictures(20)), "label has empty values")
    refuse(good.slice(0, 0), "has no rows")
    refuse(table([0, 1], [pictures(1)[0], b""]), r"x.parquet row 1 \(empty\)")
    for part, labels in (("train", [0, 1] * 10), ("validation", [0, 1] * 9 + [7, 8])):
        pq.write_table(table(labels, pictures(20)), tmp_path / f"{part}-00000-of-00001.parquet")
    with pytest.raises(UserError, match="validation part has classes that train lacks: 7, 8"):
        load_splits(ParquetConfig(path=tmp_path))
    for shard in tmp_path.glob("*-00000-*"):
        shard.unlink()
    with pytest.raises(UserError, match=r"has no train-\*.parquet"):
        load_splits(ParquetConfig(path=tmp_path))
    with pytest.raises(UserError, match="nowhere is not there"):
        load_splits(ParquetConfig(path=tmp_path / "nowhere"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"x.parquet: is no whole parquet file"):
        load_splits(ParquetConfig(path=path))
