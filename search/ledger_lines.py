"""The format of `trials.jsonl`: a JSON object on every line, told apart by `event`, with its keys
in the order that they have here.

What reads or writes a ledger does it by these models, and refuses what they do not know. A key that
may be null at its end is left out where there is nothing to say; all others are there. Seconds of
`at` are since 1970.
"""

import json
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from search.results import FAILED, FINISHED, STOPPED
from spaces.frozen import Frozen
from spaces.policy import Policy

Stage = Literal["probe", "promotion", "validation"]
Status = Annotated[str, Field(pattern=f"^({FINISHED}|{STOPPED}|{FAILED})$")]
Count = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[\w-]{1,200}$")]  # of a folder, too
Moment = Annotated[float, Field(ge=0, lt=2.5e11)]  # after which there are no dates
Seconds = Annotated[float, Field(ge=0, lt=1e10)]
# Whole numbers stay what they are; others are written so that they come back to the last bit.
Number = Annotated[int, Field(gt=-(2**53), lt=2**53)] | float


def _of_an_epoch(figures: dict[str, Number]) -> dict[str, Number]:
    epoch = figures.get("epoch", 0)
    if not 0 < epoch < 2**32 or epoch != int(epoch):
        raise ValueError(f"epoch should be 1, 2, ..., got {epoch!r}")
    return figures


class SittingLine(Frozen):
    """A process begins to work on the run, with these versions of packages, Augury's included."""

    event: Literal["sitting"] = "sitting"
    versions: dict[str, str]
    at: Moment


class StageLine(Frozen):
    """A stage begins, which takes so many trials, those that ended included, of so many epochs;
    every one has a share of a GPU, or several."""

    event: Literal["stage"] = "stage"
    stage: Stage
    trials: Count
    epochs: Count | None = None
    gpus: Annotated[float, Field(ge=0, lt=1e6)] | None = None
    at: Moment


class BeganLine(Frozen):
    """A trial begins, or begins again. Its policy is what `params` mean in the space of the search,
    whose sampler made so many proposals for it; all but the last were known."""

    event: Literal["began"] = "began"
    trial: Name
    stage: Stage
    policy: Policy
    seed: Count
    params: dict[str, str | Number]
    proposals: Annotated[Count, Field(ge=1)]
    at: Moment

    @model_validator(mode="after")
    def _probes_are_numbered(self) -> Self:
        if self.stage == "probe" and not self.trial.isdecimal():
            raise ValueError(f"a probe is called by its number, got {self.trial!r}")
        return self


class EpochLine(Frozen):
    """A trial did an epoch, in so many seconds; of the `figures` of `EpochReport` it has those that
    are finite."""

    event: Literal["epoch"] = "epoch"
    trial: Name
    figures: Annotated[dict[str, Number], AfterValidator(_of_an_epoch)]
    seconds: Seconds
    node: str
    device: str
    batch_size: Count
    at: Moment


class EndedLine(Frozen):
    """A trial is over: with a `failure` where it failed, with a `test_accuracy` where it was
    promoted and has one."""

    event: Literal["ended"] = "ended"
    trial: Name
    status: Status
    failure: str | None
    test_accuracy: float | None = None
    at: Moment


class ConcludedLine(Frozen):
    """There is a verdict on all that is before this line."""

    event: Literal["concluded"] = "concluded"
    at: Moment


Line = SittingLine | StageLine | BeganLine | EpochLine | EndedLine | ConcludedLine
_LINES: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="event")])


def parsed(line: bytes) -> Line:
    """What a line says; raises ValueError, pydantic's, where it is none."""
    return _LINES.validate_json(line)


def written(line: Line) -> bytes:
    """The line as it is in the file, with its end."""
    fields = type(line).model_fields
    content = line.model_dump(mode="json").items()
    kept = {key: value for key, value in content if value is not None or fields[key].is_required()}
    return json.dumps(kept, ensure_ascii=False, allow_nan=False).encode() + b"\n"
