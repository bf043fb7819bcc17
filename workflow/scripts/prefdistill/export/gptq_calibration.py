"""Give GPTQModel packed forward passes for its calibration.

GPTQModel embeds each calibration example, records the arguments of the first layer, and
then runs layer after layer on them. Here an example is a pass of several rows laid end
to end, and each layer is called with their layout, so that packed attention keeps the
rows apart. A linear layer's Hessian is 2 / n times the sum of x x' over all n tokens,
so it does not depend on how passes hold them.
"""

from typing import Any

import numpy as np
import torch

from prefdistill.engine.layout import PackedLayout
from prefdistill.engine.packing import collate, pack, shape_step


def packed_passes(rows: list[np.ndarray], token_budget: int) -> list[dict[str, Any]]:
    """Make examples for GPTQModel: rows in bins, without padding.

    The two orders of a pair do not share tokens, as all tokens of both rows count in
    the Hessians.

    Args:
        rows: Calibration tokens, ``(length,)`` integer each.
        token_budget: Most tokens of a pass; a longer row gets its own pass.

    Returns:
        Arguments of the model's forward: ``input_ids`` and ``position_ids``,
        ``(1, n_tokens)`` int64 each, and the rows' lengths as ``packed``.
    """
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
        A subclass that loads a classifier, and overrides two methods that GPTQModel
        leaves to definitions.
    """
    from transformers import AutoModelForSequenceClassification

    class PackedClassifier(definition):
        loader = AutoModelForSequenceClassification

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
            # Attention is compiled once for each shape: a dummy row keeps shapes few.
            missing = -int(lengths.sum()) % shape_step(token_budget, target_device.type)
            if missing:
                lengths = np.append(lengths, missing)
            layout = PackedLayout(lengths, target_device)
            arguments = {**additional_inputs, "packed": layout}
            return super().prepare_layer_replay_kwargs(
                layer, layer_input, arguments, target_device
            )

    return PackedClassifier
