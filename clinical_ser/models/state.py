"""What a learned object is on disk: named finite numbers, checked field by field before they are used.

No pickle: each learned object has one frozen `State`, and goes to JSON and back without losing a bit (Python prints a float so that it
reads back equal).
"""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clinical_ser.errors import BundleSchemaError

Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; text and truth values are not taken for one."""
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
Label = Annotated[str, Field(strict=True)] | Annotated[int, Field(strict=True)]
"""A class, by name or by number."""
Vector = tuple[Finite, ...]
Matrix = tuple[Vector, ...]


class State(BaseModel):
    """Base of every learned object's file form: frozen, no unknown field, no number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (dict, list, str, int, float, None), ready for JSON."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Check plain values and return the state.

        Raises
        ------
        BundleSchemaError
            Naming each field that does not fit; the values stay out of the message.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(str(part) for part in fault['loc']) or 'the whole'}: {fault['msg']}" for fault in error.errors()[:5])
            raise BundleSchemaError(f"{cls.__name__} does not follow its schema ({faults}).") from None
