"""The running mean of weights, against the recursion written out."""

import torch

from prefdistill.training.ema import WeightAverage


def test_the_mean_is_the_recursion():
    torch.manual_seed(0)
    weights = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    average = WeightAverage(weights, 0.9)
    plain = {name: weight.clone() for name, weight in weights.items()}
    for _ in range(5):
        for name, weight in weights.items():
            weight += torch.randn_like(weight)
            plain[name] = 0.9 * plain[name] + 0.1 * weight
        average.update()
    for name, mean in average.means.items():
        torch.testing.assert_close(mean, plain[name])


def test_the_model_has_the_mean_inside_the_block_only():
    weights = {"a": torch.tensor([1.0, 2.0])}
    average = WeightAverage(weights, 0.5)
    weights["a"] += 4
    average.update()
    with average.in_place():
        assert weights["a"].tolist() == [3, 4]
    assert weights["a"].tolist() == [5, 6]


def test_a_checkpoint_restores_the_mean():
    weights = {"a": torch.tensor([1.0, 2.0])}
    average = WeightAverage(weights, 0.5)
    weights["a"] += 4
    average.update()
    other = WeightAverage({"a": torch.zeros(2)}, 0.5)
    other.restore(average.tensors())
    assert other.means["a"].tolist() == [3, 4]
