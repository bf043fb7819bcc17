"""A tiny model's settings of quantisation, and its calibration rows."""

import numpy as np

from prefdistill.settings import GptqSettings, TextSettings

SETTINGS = GptqSettings(
    group_size=32, n_calibration_pairs=24, desc_act=False, damp_percent=0.05, seed=0
)
TEXT = TextSettings(
    template="<prompt>: {prompt}\n<response_a>: {response_a}\n"
    "<response_b>: {response_b}\n<verdict>:",
    turn="\n<turn {n}>: ",
    max_length=96,
    prompt_share=0.25,
    head_share=0.5,
)
ROWS = [
    np.random.default_rng(n).integers(3, 400, n).astype(np.int32)
    for n in (9, 20, 33, 47)
]
