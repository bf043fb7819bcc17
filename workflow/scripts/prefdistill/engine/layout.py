"""Locate the rows of a packed batch, and the tokens that their attention sees."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from prefdistill.engine.block_masks import BLOCK, block_mask
from prefdistill.engine.device import to_device
from prefdistill.engine.packing import sight

# On a CPU, rows share a group if the shortest has at least this share of the longest
# one's tokens.
GROUP_FILL = 0.7


class Grouped(NamedTuple):
    """Attention on the CPU: rows in padded groups, and a sliding window or None."""

    layout: "PackedLayout"
    window: int | None


Attention = Grouped | BlockMask


class PackedLayout:
    """The places of a packed batch's rows; all layers share it.

    Args:
        lengths: ``(n_rows,)`` integer tokens laid out for each row.
        device: Where the indices are needed.
        shared: ``(n_rows,)`` integer tokens that a row shares with the previous one,
            laid out as ``packing.sight`` describes; None for none.
        keep: ``(n_kept,)`` int64 places of the tokens whose last hidden states are
            wanted, on the device; None for all.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        device: torch.device,
        shared: np.ndarray | None = None,
        keep: torch.Tensor | None = None,
    ) -> None:
        self.lengths, self.device = np.asarray(lengths, dtype=np.int64), device
        self.shared = np.zeros_like(self.lengths) if shared is None else shared
        self.keep = keep
        self._masks: dict[Any, Any] = {}
        if device.type == "cpu":
            self.groups, self.scatter = self._grouped()

    def attention(self, window: int | None, block: int = BLOCK) -> Attention:
        """Return the batch's mask or groups, for ``packed_attention``.

        Args:
            window: Size of a sliding window, or None. A window that no row exceeds
                counts as None.
            block: Keys in a block of the mask, from ``Scores.key_block``.
        """
        if window is not None and window >= (self.lengths + self.shared).max():
            window = None
        if self.device.type == "cpu":
            return Grouped(self, window)
        if (window, block) not in self._masks:
            self._masks[window, block] = block_mask(
                self.lengths, self.shared, window, block, self.device
            )
        return self._masks[window, block]

    def seen_by_kept(self, window: int | None) -> torch.Tensor:
        """Return the mask of places that the kept tokens see.

        Returns:
            ``(n_kept, n_tokens)`` bool.
        """
        key = ("kept", window)
        if key not in self._masks:
            arrays = np.stack(sight(self.lengths, self.shared))
            position, first, last = to_device(arrays, self.device)
            place = torch.arange(len(position), device=self.device)
            seen = (place >= first[self.keep, None]) & (place <= last[self.keep, None])
            if window is not None:
                seen &= position[self.keep, None] - position < window
            self._masks[key] = seen
        return self._masks[key]

    def causal_mask(self, length: int, window: int | None) -> torch.Tensor:
        """Return the mask of keys (columns) that a row's queries (rows) see.

        Returns:
            ``(length, length)`` bool.
        """
        key = ("dense", length, window)
        if key not in self._masks:
            ones = torch.ones(length, length, dtype=torch.bool)
            mask = ones.tril()
            self._masks[key] = mask if window is None else mask & ~ones.tril(-window)
        return self._masks[key]

    def _grouped(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Put rows of similar length into right-padded groups.

        Returns:
            The places of each group's tokens, ``(n, length)`` int64; and for each place
            of the batch, its index in the groups' outputs, ``(n_tokens,)`` int64.
        """
        # Padding repeats place 0. It follows a row's own tokens, so causal attention
        # never reads it, and its output is not scattered back. Tokens shared with the
        # previous row are not scattered back either, as that row owns them.
        rows = self._places()
        whole = np.array([len(places) for places in rows])
        order = np.argsort(-whole, kind="stable")
        groups, scatter = [], np.zeros(int(self.lengths.sum()), dtype=np.int64)
        offset = first = 0
        while first < len(order):
            longest = int(whole[order[first]])
            fits = whole[order[first:]] >= GROUP_FILL * longest
            n_rows = int(fits.sum())
            index = np.zeros((n_rows, longest), dtype=np.int64)
            for number, row in enumerate(order[first : first + n_rows]):
                index[number, : whole[row]] = rows[row]
                own = np.arange(self.shared[row], whole[row])
                scatter[rows[row][own]] = offset + number * longest + own
            groups.append(torch.from_numpy(index))
            offset += index.size
            first += n_rows
        return groups, torch.from_numpy(scatter)

    def _places(self) -> list[np.ndarray]:
        """Return the places of each row's tokens, from its first to its last."""
        position = sight(self.lengths, self.shared).position
        rows: list[np.ndarray] = []
        for end, length, n_shared in zip(
            np.cumsum(self.lengths), self.lengths, self.shared, strict=True
        ):
            places = np.arange(end - length, end)
            places = places[np.argsort(position[places])]
            if n_shared:
                places = np.concatenate([rows[-1][:n_shared], places])
            rows.append(places)
        return rows
