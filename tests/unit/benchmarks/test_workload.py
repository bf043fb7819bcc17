import numpy as np
import pytest
import torch

from benchmarks import engine, workload

GEMMA = workload.SHAPES["gemma-2-9b"]


def test_linear_parameters_of_the_real_shapes():
    billions = {
        name: workload.linear_parameters(workload.SHAPES[name]) / 1e9
        for name in workload.PUBLISHED
    }
    assert billions == pytest.approx(
        {"gemma-2-9b": 8.32, "llama-3.1-8b": 6.98, "qwen2.5-7b": 6.53}, abs=0.006
    )


def test_shapes_are_those_that_transformers_builds():
    from transformers import AutoModelForSequenceClassification

    for name in (*workload.PUBLISHED, *workload.TINY, "smollm2-135m"):
        shape = workload.SHAPES[name]
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                engine.configuration(shape)
            )
        products = [
            module.weight.numel()
            for module in model.model.layers.modules()
            if isinstance(module, torch.nn.Linear)
        ]
        assert sum(products) == workload.linear_parameters(shape)


def test_useful_operations():
    n, lengths = workload.linear_parameters(GEMMA), np.array([100, 300])
    attention = 4 * 42 * 16 * 256 * (100**2 + 300**2) / 2
    forward = workload.useful_flops(GEMMA, lengths, train=False)
    assert forward == pytest.approx(2 * n * 400 + attention)
    whole = workload.useful_flops(GEMMA, lengths, train=True)
    assert whole == pytest.approx(4 * n * 400 + 3 * attention)
    upper = workload.useful_flops(GEMMA, lengths, train=True, lowest_layer=21)
    assert upper == pytest.approx(forward + (whole - forward) / 2)


def test_adapters_of_the_variants():
    assert workload.lora_settings("engine", "infer", 42) is None
    assert workload.lora_settings("recipe", "train", 42)["r"] == 64
    upper = workload.lora_settings("recipe_upper", "train", 42)
    assert (upper["r"], upper["lowest_layer"], len(upper["targets"])) == (16, 16, 3)
    with pytest.raises(ValueError, match="no variant"):
        workload.lora_settings("engine_upper", "infer", 42)


def test_lengths_from_a_file(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(
        "id,prompt,response_a,response_b\n"
        '1,"[""aaaa""]","[""bbbb"", null]","[""cccc""]"\n'
        f'2,plain,"[""{"d" * 99999}""]","[]"\n'
    )
    lengths, prefixes = workload.csv_lengths(path, 2048)
    assert lengths.tolist() == [3 + 24, 2048]
    assert prefixes.tolist() == [1 + 12, (1 + 12) * 2048 // (99999 // 4 + 25)]
    drawn, prefixes, said = workload.draw_lengths(5, 2048, path)
    assert set(zip(drawn.tolist(), prefixes.tolist(), strict=True)) <= {
        (27, 13),
        (2048, 1),
    }
    assert said.startswith("pairs.csv")


def test_simulated_lengths():
    lengths, prefixes, said = workload.draw_lengths(20_000, 2048, None)
    assert "log-normal" in said
    assert (lengths.min(), lengths.max()) == (48, 2048)
    assert np.median(lengths) == pytest.approx(650, rel=0.03)
    assert prefixes.sum() / lengths.sum() == pytest.approx(0.13, abs=0.001)


def test_random_pairs_have_their_lengths():
    lengths, prefixes = np.array([2, 3, 9, 64]), np.array([0, 9, 4, 8])
    encoded = workload.random_pairs(lengths, prefixes, 50)
    assert encoded.prefix_lengths.tolist() == [1, 2, 4, 8]
    for row, length in enumerate(lengths):
        for view in ("AB", "BA"):
            assert len(encoded.tokens(row, view)) == length


def test_padded_batches():
    lengths = np.array([3, 9, 1, 5, 7])
    plain = workload.padded_batches(lengths, 2, by_length=False)
    assert [batch.tolist() for batch in plain] == [[0, 1], [2, 3], [4]]
    sorted_ = workload.padded_batches(lengths, 2, by_length=True)
    assert [batch.tolist() for batch in sorted_] == [[1, 4], [3, 0], [2]]
    tokens, mask = workload.pad_rows([np.array([7]), np.array([8, 9])])
    assert tokens.tolist() == [[7, 0], [8, 9]]
    assert mask.tolist() == [[1, 0], [1, 1]]
