"""Encoded images in parquet, in the columns that Hugging Face's data sets have."""

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces.errors import UserError, unknown_name
from trainers.datasets.config import ParquetConfig
from trainers.datasets.encoded import Encoded, Source, stamp

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_SHARDS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}


class ParquetImages:
    """The images of the row groups of some files, of which one at a time is in memory."""

    def __init__(
        self, files: Sequence["tuple[Path, ParquetFile]"], labels: list[int], config: ParquetConfig
    ) -> None:
        self._paths = [path for path, _ in files]
        self._column = config.image_column
        self._groups = [
            (path, file, group) for path, file in files for group in range(file.num_row_groups)
        ]
        rows = [file.metadata.row_group(group).num_rows for _, file, group in self._groups]
        self._starts = list(accumulate(rows, initial=0))
        self._in_memory: tuple[int, list[bytes]] = (-1, [])
        self.labels = labels
        self.names = [
            f"{path.name} row {row}"
            for path, file in files
            for row in range(file.metadata.num_rows)
        ]

    @cached_property
    def stamp(self) -> str:
        return stamp(((path.name, path) for path in self._paths), self._column, self.labels)

    def read(self, start: int, stop: int) -> list[bytes]:
        found: list[bytes] = []
        for index, first in enumerate(self._starts[:-1]):
            after = self._starts[index + 1]
            if first < stop and start < after:
                images = self._group(index)
                found += images[max(start - first, 0) : stop - first]
        return found

    def _group(self, index: int) -> list[bytes]:
        import pyarrow as pa

        if self._in_memory[0] != index:
            path, file, group = self._groups[index]
            try:
                column = file.read_row_group(group, columns=[self._column]).column(0)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{path}: cannot be read: {error}") from None
            self._in_memory = index, [_bytes(value) for value in column.to_pylist()]
        return self._in_memory[1]


def _bytes(value: Any) -> bytes:
    """Of a struct the member `bytes`; a missing value is an image that cannot be read."""
    if isinstance(value, dict):
        value = value["bytes"]
    return value or b""


def parquet(config: ParquetConfig) -> Source:
    """The file at `path` as train, or the shards in the folder as the parts in their names.

    Labels are numbers, named by the features in the file's metadata where they are there, or
    texts, whose order is that of their names. Raises UserError for a missing path, a column that
    is missing or of a type that is none of these, and classes that train lacks.
    """
    parts = {part: [(p, _opened(p, config)) for p in paths] for part, paths in _files(config)}
    values = {part: _labels(files, config.label_column) for part, files in parts.items()}
    if not values["train"]:
        raise UserError(f"{config.path}: has no rows")
    classes = _classes(values["train"], parts["train"][0][1], config)
    encoded: dict[str, Encoded] = {}
    for part, files in parts.items():
        foreign = sorted(set(values[part]) - set(classes), key=str)
        if foreign:
            names = ", ".join(map(str, foreign[:5]))
            what = "labels that are no class" if part == "train" else "classes that train lacks"
            raise UserError(f"{config.path}: the {part} part has {what}: {names}")
        labels = [classes[value] for value in values[part]]
        encoded[part] = ParquetImages(files, labels, config)
    return Source(_names(classes, parts["train"][0][1], config), encoded)


def _files(config: ParquetConfig) -> list[tuple[str, list[Path]]]:
    path = config.path.expanduser()
    if path.is_file():
        return [("train", [path])]
    if not path.is_dir():
        raise UserError(f"data.path: {path} is not there")
    found = {
        part: sorted(p for name in names for p in path.glob(f"{name}[-.]*parquet"))
        for part, names in _SHARDS.items()
    }
    if not found["train"]:
        raise UserError(f"{path}: has no train-*.parquet")
    return [(part, paths) for part, paths in found.items() if paths]


def _opened(path: Path, config: ParquetConfig) -> "ParquetFile":
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (OSError, pa.ArrowException):
        raise UserError(f"{path}: is no whole parquet file") from None
    schema = file.schema_arrow
    for column in (config.image_column, config.label_column):
        if column not in schema.names:
            raise unknown_name("column", column, schema.names, str(path))
    image, label = (schema.field(c).type for c in (config.image_column, config.label_column))
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise UserError(f"{path}: {config.image_column} should be encoded images, is {image}")
    label = label.value_type if pa.types.is_dictionary(label) else label
    texts = pa.types.is_string(label) or pa.types.is_large_string(label)
    if not (pa.types.is_integer(label) or texts):
        raise UserError(f"{path}: {config.label_column} should be numbers or texts, is {label}")
    return file


def _labels(files: Sequence["tuple[Path, ParquetFile]"], column: str) -> list[Any]:
    labels: list[Any] = []
    for path, file in files:
        values = file.read(columns=[column]).column(0)
        if values.null_count:
            raise UserError(f"{path}: {column} has empty values")
        labels += values.to_pylist()
    return labels


def _classes(values: list[Any], file: "ParquetFile", config: ParquetConfig) -> dict[Any, int]:
    """The number of the class that each value of the label column stands for."""
    features = _feature_names(file, config.label_column)
    if features and isinstance(values[0], int):
        return {label: label for label in range(len(features))}
    return {value: index for index, value in enumerate(sorted(set(values)))}


def _names(classes: dict[Any, int], file: "ParquetFile", config: ParquetConfig) -> list[str]:
    features = _feature_names(file, config.label_column)
    return features if len(features) == len(classes) else list(map(str, classes))


def _feature_names(file: "ParquetFile", column: str) -> list[str]:
    """The names of a ClassLabel in the metadata that Hugging Face's writer leaves."""
    try:
        content = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        names = content["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return list(map(str, names)) if isinstance(names, list) else []
