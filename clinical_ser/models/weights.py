"""Weights that let every subject count once, however many recordings they gave.

Ten recordings of one person are not ten people: unweighted, the talkative decide the calibration and every error bar is too short.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import InvalidValueError


def subject_weights(groups: NDArray[Any] | None, n_rows: int) -> NDArray[np.float64]:
    """Return one weight a row, summing to 1 over each subject's rows.

    Parameters
    ----------
    groups
        Shape (n_rows,), the subject of each row; None where every row is a subject of its own.
    n_rows
        Number of rows.

    Returns
    -------
    ndarray of shape (n_rows,)
        One over the number of rows of the row's subject; the total is the number of subjects.

    Examples
    --------
    >>> subject_weights(np.array(["a", "a", "b"]), 3).tolist()
    [0.5, 0.5, 1.0]
    """
    _, subject, rows = np.unique(subject_of_row(groups, n_rows), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / rows[subject])


def subject_of_row(groups: NDArray[Any] | None, n_rows: int) -> NDArray[Any]:
    """Return `groups` checked against the number of rows, or a subject of its own for every row.

    Raises
    ------
    InvalidValueError
        If `groups` has another length.
    """
    if groups is None:
        return np.arange(n_rows)
    subjects = np.asarray(groups)
    if subjects.shape != (n_rows,):
        raise InvalidValueError("groups", f"array of shape {subjects.shape}", f"one subject for each of the {n_rows} rows")
    return subjects
