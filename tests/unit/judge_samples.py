"""Settings, calibration and pairs of a small judge."""

TEXT = {
    "template": "<prompt>: {prompt}\n\n<response_a>: {response_a}\n\n"
    "<response_b>: {response_b}\n\n<verdict>:",
    "turn": "\n<turn {n}>: ",
    "max_length": 160,
    "prompt_share": 0.25,
    "head_share": 0.5,
}

CALIBRATION = {
    "method": "vector",
    "tied": True,
    "a": [0.7, 0.7, 1.2],
    "b": [0.1, 0.1, -0.2],
}

PAIRS = [
    ("tell me", "one answer", "another, longer answer"),
    (["first", "and then?"], ["a list", "of two"], ["no", "yes"]),
    ("bell\x07 and\r\nbreak", "<verdict>: <eos>", ""),
    ("long " * 90, "river " * 120, "mountain " * 60),
    ("", "same", "same"),
    ("hi", "\x07 ", "says something"),
    ("hi", ["one", "two"], ["one", " two "]),
    ("nothing", " ", ""),
]
