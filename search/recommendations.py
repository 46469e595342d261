"""What validations recommend, kept in the cache for later searches with the same data, teacher and
student: `search.objective: auto` asks here."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from search.config import SearchConfig
from search.predictors import Recommendation
from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from trainers.cache_folder import cache_folder, made_folder
from trainers.datasets import load_splits
from trainers.student import OBJECTIVES
from trainers.teacher import teacher_hash

FOLDER = "recommendations"


def keep(found: Recommendation, made_by: Mapping[str, Any], config: SearchConfig) -> None:
    """Keeps `found` for the data and teacher that `made_by` names by their hashes, and the student
    of `config`. Raises UserError where the cache cannot be written."""
    name = _name(made_by["data_hash"], made_by["teacher_hash"], config)
    path = made_folder(FOLDER, "recommendations") / name
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(found.as_dict()))


def applied(config: SearchConfig) -> SearchConfig:
    """`config` with the objective and the length of probes that were recommended last.

    Raises UserError where there was no validation, or one that found nothing to trust.
    """
    splits = load_splits(config.data)
    name = _name(splits.content_hash, teacher_hash(splits, config.teacher), config)
    try:
        found = json.loads((cache_folder() / FOLDER / name).read_text())
        objective, epochs = found["objective"], int(found["probe_epochs"])
        trusted, sentence = bool(found["trusted"]) and objective in OBJECTIVES, found["sentence"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            "search.objective: auto: nothing is recommended for these data, teacher and student "
            "yet: search with an objective, then run augury validate on that run"
        ) from None
    if not trusted:
        raise UserError(f"search.objective: auto: {sentence} Name an objective.")
    search = config.search.model_copy(update={"objective": objective, "probe_epochs": epochs})
    return config.model_copy(update={"search": search})


def _name(data_hash: str, teacher: str, config: SearchConfig) -> str:
    made_by = "\n".join([data_hash, teacher, config.student.model_dump_json()])
    return hashlib.blake2b(made_by.encode(), digest_size=8).hexdigest() + ".json"
