"""Calibrate GPTQModel on packed forward passes.

GPTQModel embeds each calibration example, records the arguments of the first layer, and
runs one layer after the other on them. Here an example is a pass of several packed
rows, and each layer gets their layout, so that packed attention separates the rows. A
linear layer's Hessian is 2 / n times the sum of x x' over all n tokens, so packing does
not change it.
"""

from typing import Any

import numpy as np
import torch

from prefdistill.engine.layout import PackedLayout
from prefdistill.engine.packing import collate, pack, shape_step
from prefdistill.models.head import classifier_class


def packed_passes(rows: list[np.ndarray], token_budget: int) -> list[dict[str, Any]]:
    """Pack rows into examples for GPTQModel, without padding.

    Args:
        rows: Calibration tokens, ``(length,)`` integer each.
        token_budget: Most tokens of a pass; a longer row gets its own pass.

    Returns:
        Arguments of the model's forward: ``input_ids`` and ``position_ids``,
        ``(1, n_tokens)`` int64 each, and the rows' lengths as ``packed``.
    """
    # The two orders of a pair share no tokens here, as all tokens of both rows count in
    # the Hessians.
    lengths = np.array([len(row) for row in rows])
    batches = [
        collate([rows[row] for row in members])
        for members in pack(lengths, token_budget)
    ]
    return [
        {
            "input_ids": torch.from_numpy(batch.input_ids),
            "position_ids": torch.from_numpy(batch.position_ids),
            "packed": batch.lengths,
        }
        for batch in batches
    ]


def packed_classifier(definition: type, token_budget: int) -> type:
    """Adapt GPTQModel's definition of an architecture to classifiers and packed passes.

    Args:
        definition: A class of ``gptqmodel.models.definitions``.
        token_budget: The budget that the passes were made with.

    Returns:
        A subclass that loads a classifier, and overrides two methods that definitions
        of GPTQModel may override.
    """

    class PackedClassifier(definition):
        loader = classifier_class()

        def prepare_dataset(
            self, calibration_dataset: list[dict[str, Any]], **_: Any
        ) -> list[dict[str, Any]]:
            """Return the passes unchanged: no row is cut, padded or dropped."""
            return calibration_dataset

        def prepare_layer_replay_kwargs(
            self,
            layer: torch.nn.Module,
            layer_input: list[torch.Tensor],
            additional_inputs: dict[str, Any],
            target_device: torch.device,
        ) -> dict[str, Any]:
            """Turn the rows' lengths into a layout on the layer's device."""
            lengths = additional_inputs["packed"]
            # Attention is compiled once per shape; a dummy row keeps the shapes few.
            missing = -int(lengths.sum()) % shape_step(token_budget, target_device.type)
            if missing:
                lengths = np.append(lengths, missing)
            layout = PackedLayout(lengths, target_device)
            arguments = {**additional_inputs, "packed": layout}
            return super().prepare_layer_replay_kwargs(
                layer, layer_input, arguments, target_device
            )

    return PackedClassifier
