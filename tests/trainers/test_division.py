"""Whatever the labels: parts are disjoint, whole, and hold every class."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import UserError
from trainers.datasets.config import FolderConfig
from trainers.datasets.division import divided

CONFIG = FolderConfig(path=".", validation_images=0.25, test_images=0.25)


@settings(deadline=None)  # the first example pays for what all of them warm up
@given(st.lists(st.integers(8, 20), min_size=2, max_size=6), st.integers(0, 99), st.data())
def test_the_parts_of_a_source_are_a_division_of_it(counts, seed, data):
    classes = [str(label) for label in range(len(counts))]
    ordered = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = ordered[torch.tensor(data.draw(st.permutations(range(len(ordered)))))]
    config = CONFIG.model_copy(update={"seed": seed, "student_images": len(labels) // 3})
    division = divided({"train": labels}, classes, config)
    assert {origin for origin, _ in division.values()} == {"train"}
    rows = {part: set(found.tolist()) for part, (_, found) in division.items()}
    assert sum(len(rows[part]) for part in ("train", "validation", "test")) == len(labels)
    assert rows["train"] | rows["validation"] | rows["test"] == set(range(len(labels)))
    assert rows["student"] <= rows["train"]
    assert division["train"][1].tolist() == sorted(rows["train"])
    for part in ("train", "validation", "test", "student"):
        counted = labels[division[part][1]].bincount(minlength=len(counts))
        expected = torch.tensor(counts) * len(rows[part]) / len(labels)
        assert (counted - expected).abs().max() <= 2, part


def test_the_seed_decides_who_validates():
    labels = torch.arange(5).repeat(20)
    classes = list("abcde")
    first, again, other = (
        divided({"train": labels}, classes, CONFIG.model_copy(update={"seed": seed}))
        for seed in (0, 0, 1)
    )
    assert first["validation"][1].tolist() == again["validation"][1].tolist()
    assert set(first["validation"][1].tolist()) != set(other["validation"][1].tolist())


def test_a_long_list_of_classes_is_cut():
    labels = torch.cat([torch.arange(9), torch.zeros(9, dtype=torch.int64)])
    with pytest.raises(UserError, match=r"one image cannot be split .*: b, c, d, e, f and 3 more$"):
        divided({"train": labels}, list("abcdefghi"), CONFIG)
