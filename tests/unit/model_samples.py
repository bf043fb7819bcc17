"""An adapter, a packed batch, and its scores."""

import numpy as np
import torch

from prefdistill.engine.packing import collate
from prefdistill.models.forward import classify

LORA = {
    "r": 4,
    "alpha": 8,
    "dropout": 0.1,
    "targets": ["q_proj", "down_proj"],
    "lowest_layer": 0,
}
BATCH = collate([np.arange(4, 20), np.arange(30, 33)])


def scores(model):
    with torch.no_grad():
        return classify(model.eval(), BATCH)
