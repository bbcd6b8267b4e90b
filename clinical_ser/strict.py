"""The base of every object that crosses a border: frozen, no unknown field, no number that is not finite.

One base, because a field that one of them lets through is a field that someone relies on.
"""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen and closed; what does not fit is refused without being quoted, because it may be a name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
