"""Where a search begins: the policies that are asked first, and what is known of others.

Both are settled when the run is made and kept in its marker, so that a search goes on from them
whatever has become of the files that they were read from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.config import SearchConfig
from search.results import FINISHED
from search.run_folder import RunFolder
from search.table import read_parquet
from spaces.errors import UserError
from spaces.policy import Policy, policy_from_json
from spaces.schemes import SCHEMES, policy_called

WINNERS = 5  # of an earlier run, by its own ranking


@dataclass(frozen=True)
class WarmStart:
    """Policies that are asked `first`, and those that are known with what they had for every
    objective of the search: figures of another run with the same data, base, teacher, student and
    length of probes."""

    first: tuple[Policy, ...]
    known: tuple[tuple[Policy, dict[str, float]], ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "first": [policy.model_dump_json() for policy in self.first],
            "known": [[policy.model_dump_json(), told] for policy, told in self.known],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "WarmStart":
        return cls(
            tuple(map(policy_from_json, content["first"])),
            tuple((policy_from_json(text), told) for text, told in content["known"]),
        )


def warm_start(config: SearchConfig, made_by: dict[str, Any]) -> WarmStart:
    """What `search.warm_start` names: schemes, policy files, and the winners of earlier runs, of
    which the other probes are known where `made_by` says that they were made alike.

    Raises UserError for a name that is none of these.
    """
    first: list[Policy] = []
    known: list[tuple[Policy, dict[str, float]]] = []
    for name in config.search.warm_start:
        try:
            if name.partition("+")[0] not in SCHEMES and ("://" in name or Path(name).is_dir()):
                winners, others = _of_run(RunFolder.open(name), config, made_by)
                first += winners
                known += others
            else:
                first.append(policy_called(name))
        except (UserError, OSError) as error:  # a name too long for a file
            raise UserError(f"search.warm_start: {error}") from None
    asked = {policy.on(config.data.base).identity for policy in first}
    return WarmStart(tuple(first), tuple((p, told) for p, told in known if p.identity not in asked))


def _of_run(
    folder: RunFolder, config: SearchConfig, made_by: dict[str, Any]
) -> tuple[list[Policy], list[tuple[Policy, dict[str, float]]]]:
    records = read_parquet(folder.policies).to_pylist()
    finished = [record for record in records if record["status"] == FINISHED]
    policies = [policy_from_json(record["policy_json"]) for record in finished]
    if not _alike(folder.read_marker(), config, made_by):
        return policies[:WINNERS], []
    told = [{name: record[name] for name in config.search.directions} for record in finished]
    pairs = zip(policies[WINNERS:], told[WINNERS:], strict=True)
    return policies[:WINNERS], [(p, t) for p, t in pairs if None not in t.values()]


def _alike(theirs: dict[str, Any], config: SearchConfig, made_by: dict[str, Any]) -> bool:
    ours = {**made_by, "config": config.model_dump(mode="json")}
    same: Sequence[tuple[str, ...]] = (
        ("data_hash",),
        ("teacher_hash",),
        ("config", "data", "base"),
        ("config", "student"),
        ("config", "search", "probe_epochs"),
    )
    return all(_at(theirs, path) == _at(ours, path) for path in same)


def _at(content: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        content = content.get(key, {})
    return content
