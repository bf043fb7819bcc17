"""Lengths of packed rows, and the places of their tokens."""

import torch

CPU = torch.device("cpu")
LENGTHS = (5, 30, 11, 17, 29, 1, 30)


def places_of(lengths, shared):
    """Where the tokens of each row lie, first to last: by ``b a p q c d``."""
    rows, end = [], 0
    for row, length in enumerate(lengths):
        start, end = end, end + length
        n_next = shared[row + 1] if row + 1 < len(lengths) else 0
        if n_next:
            own = range(end - n_next - 1, start - 1, -1)
            rows.append([*range(end - n_next, end), *own])
        else:
            before = rows[-1][: shared[row]] if shared[row] else []
            rows.append([*before, *range(start, end)])
    return rows
