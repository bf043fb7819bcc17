"""Join the rows of two tables by id."""

from collections.abc import Sequence

import numpy as np


def find_rows(
    ids: np.ndarray | Sequence[str], wanted: np.ndarray | Sequence[str]
) -> np.ndarray:
    """Find the row of each wanted id.

    Args:
        ids: ``(n,)`` unicode row ids, unique.
        wanted: ``(n_wanted,)`` unicode ids.

    Returns:
        ``(n_wanted,)`` int64 rows of ``ids``, -1 where an id is not among them.
    """
    places = {name: row for row, name in enumerate(np.asarray(ids).tolist())}
    found = [places.get(name, -1) for name in np.asarray(wanted).tolist()]
    return np.array(found, dtype=np.int64)
