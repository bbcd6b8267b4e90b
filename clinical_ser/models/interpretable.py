"""Beside a model with embeddings: the same without them, and how much of what an embedding adds named features could tell as well.

An embedding is a pattern without a name. The two together say whether the answer rests on it, and whether it is something new.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold

from clinical_ser.errors import BundleSchemaError
from clinical_ser.models.operating_point import OperatingPoint
from clinical_ser.models.state import Count, Finite, State
from clinical_ser.models.strict_json import canonical_json, parse_json
from clinical_ser.models.weights import subject_weights

EMBEDDING = "embedding"
FOLDS = 5
PENALTIES = tuple(10.0**power for power in range(0, 6))
REPLICATES = 500
_NORMAL_95 = 1.959964


class Reproduced(State):
    """Share of the variance of what the embedding adds that interpretable features predict in people they were not fitted on (R²)."""

    r2: Annotated[Finite, Field(le=1)]
    low: Finite
    high: Finite
    """95 % interval over subjects."""
    subjects: Count


class InterpretableFile(State):
    """`interpretable.json`: the payload of the model without embeddings, file by file in base64."""

    features: tuple[str, ...] = Field(min_length=1)
    operating_point: OperatingPoint | None
    reproduced: Reproduced
    files: dict[str, str]

    @classmethod
    def of(cls, features: tuple[str, ...], operating_point: OperatingPoint | None, reproduced: Reproduced, files: Mapping[str, bytes]) -> bytes:
        """Return the bytes of the file."""
        encoded = {name: base64.b64encode(content).decode("ascii") for name, content in files.items()}
        return canonical_json(cls(features=features, operating_point=operating_point, reproduced=reproduced, files=encoded).to_dict())

    def payload(self) -> dict[str, bytes]:
        """Return the files of the model without embeddings; BundleSchemaError if they are not in base64."""
        try:
            return {name: base64.b64decode(content, validate=True) for name, content in self.files.items()}
        except binascii.Error:
            raise BundleSchemaError("interpretable.json: a file is not in base64.") from None

    @classmethod
    def read(cls, raw: bytes) -> "InterpretableFile":
        """Parse the bytes of the file."""
        return cls.from_dict(parse_json(raw))


def reproduction(Z: NDArray[np.float64], added: ArrayLike, subjects: NDArray[Any], *, seed: int) -> Reproduced:
    """Predict what the embedding adds to the margin from interpretable features, by ridge regression, in people held out.

    A linear probe of a representation (Alain & Bengio 2017, arXiv 1610.01644) whose target is not the representation but its part in the answer.

    Parameters
    ----------
    Z
        Shape (rows, features), standardised interpretable features.
    added
        Shape (rows,) or (rows, classes), what the embedding adds to each margin.
    subjects
        Shape (rows,).
    seed
        Of the bootstrap over subjects.
    """
    target = np.asarray(added, np.float64).reshape(len(Z), -1)
    predicted = np.empty_like(target)
    people = np.unique(subjects, return_inverse=True)[1]
    for train, test in GroupKFold(min(FOLDS, people.max() + 1)).split(Z, groups=people):
        predicted[test] = RidgeCV(PENALTIES).fit(Z[train], target[train]).predict(Z[test]).reshape(len(test), -1)
    weight = subject_weights(subjects, len(Z))
    missed, spread = (np.bincount(people, weight * (values**2).sum(axis=1)) for values in (target - predicted, target - target.mean(axis=0)))
    if not spread.sum():  # the embedding adds nothing, of which nothing can be reproduced
        return Reproduced(r2=0.0, low=0.0, high=0.0, subjects=len(missed))
    drawn = np.random.default_rng([seed, 2]).multinomial(len(missed), np.full(len(missed), 1 / len(missed)), size=REPLICATES)
    r2 = 1 - missed.sum() / spread.sum()
    varied = drawn @ spread > 0
    half = _NORMAL_95 * float(np.std(1 - (drawn[varied] @ missed) / (drawn[varied] @ spread), ddof=1))
    return Reproduced(r2=float(r2), low=float(r2 - half), high=float(min(r2 + half, 1.0)), subjects=len(missed))
