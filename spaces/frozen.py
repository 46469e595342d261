"""What everything that is read from a file has in common."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Unchangeable; refuses what it does not know, true for 1, "3" for 3, and infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
