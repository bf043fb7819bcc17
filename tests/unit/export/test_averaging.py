import json
import shutil

import average_adapters
import merge_adapter
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prefdistill.errors import UserError
from prefdistill.export.averaging import (
    delta_mean,
    factor_mean,
    relative_errors,
    squared_norm,
)
from prefdistill.export.gptq_check import load_plain, row_logits
from prefdistill.export.merging import write_classifier
from prefdistill.models.adapter_files import read_adapter, write_adapter
from prefdistill.models.head import Head
from prefdistill.models.manifests import write_manifest
from prefdistill.storage.records import read_json, write_json

ARCHITECTURES = ("llama", "qwen2", "gemma2")
ROWS = [
    np.random.default_rng(n).integers(3, 400, n).astype(np.int32) for n in (5, 17, 30)
]


@pytest.fixture(scope="module")
def classifier(tiny_model_folder, tmp_path_factory):
    """Function from architecture to the base as a classifier folder, head of zeros."""

    def folder_of(architecture):
        folder = tmp_path_factory.mktemp("classifier")
        write_classifier(
            tiny_model_folder(architecture),
            folder,
            Head({"score.weight": torch.zeros(3, 32)}),
        )
        return folder

    return folder_of


def edit_config(source, target, **changes):
    shutil.copytree(source, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps({**read_json(path), **changes}))
    return target


def peft_logits(folder, adapter_folder):
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_plain(folder), adapter_folder)
    return row_logits(model.eval(), ROWS)


def summed_logits(folder, adapters, weights):
    """The slow twin: every delta added to its weight, one by one."""
    model = load_plain(folder)
    for adapter, weight in zip(adapters, weights, strict=True):
        for module in adapter.layers:
            target = model.get_submodule(module).weight
            target.data += weight * adapter.delta(module)
        model.score.weight.data += weight * adapter.head.tensors["score.weight"]
    return row_logits(model, ROWS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_average_unmerged_merged_and_summed_deltas_agree(
    architecture, classifier, make_adapter, tmp_path
):
    folders = [
        make_adapter(tmp_path / "0", architecture, seed=0),
        make_adapter(tmp_path / "1", architecture, seed=1, rank=3, alpha=5),
    ]
    adapters, weights = [read_adapter(f) for f in folders], [0.3, 0.7]
    average = delta_mean(adapters, weights)
    assert average.rank == 5
    write_adapter(average, tmp_path / "average")
    base = classifier(architecture)
    expected = summed_logits(base, adapters, weights)
    assert np.abs(expected).max() > 0.1
    unmerged = peft_logits(base, tmp_path / "average")
    np.testing.assert_allclose(unmerged, expected, atol=2e-5)

    reread = read_adapter(tmp_path / "average")
    write_classifier(base, tmp_path / "merged", reread.head, reread)
    merged = load_plain(tmp_path / "merged")
    rounded = load_plain(base)
    for module in reread.layers:
        target = rounded.get_submodule(module).weight
        target.data = (target.data + reread.delta(module)).bfloat16().float()
    rounded.score.weight.data = reread.head.tensors["score.weight"]
    np.testing.assert_array_equal(row_logits(merged, ROWS), row_logits(rounded, ROWS))


def test_one_adapter_is_its_own_mean(pair, classifier, tmp_path):
    one = read_adapter(pair[0])
    write_adapter(delta_mean([one], [1.0]), tmp_path)
    base = classifier("llama")
    np.testing.assert_allclose(
        peft_logits(base, tmp_path), peft_logits(base, pair[0]), atol=1e-5
    )


def test_the_score_heads_are_averaged(pair):
    first, second = map(read_adapter, pair)
    average = delta_mean([first, second], [0.25, 0.75])
    one, two, mean = (a.head.tensors["score.weight"] for a in (first, second, average))
    torch.testing.assert_close(mean, 0.25 * one + 0.75 * two)


def test_factor_mean_errs_by_what_full_matrices_say(pair):
    adapters, weights = [read_adapter(folder) for folder in pair], [0.4, 0.6]
    exact, factors = delta_mean(adapters, weights), factor_mean(adapters, weights)
    error = relative_errors(factors, exact)
    differences = {m: factors.delta(m) - exact.delta(m) for m in exact.layers}
    by_layer = {m: d.norm() / exact.delta(m).norm() for m, d in differences.items()}
    total = sum(d.norm() ** 2 for d in differences.values()) ** 0.5
    total_exact = sum(exact.delta(m).norm() ** 2 for m in exact.layers) ** 0.5
    assert error["overall"] == pytest.approx(float(total / total_exact), rel=1e-5)
    assert error["max_layer"] == pytest.approx(float(max(by_layer.values())), rel=1e-5)
    assert error["layer"] == max(by_layer, key=by_layer.get)
    assert error["overall"] > 0.3


def test_factor_mean_of_equal_adapters_is_exact(pair):
    adapter = read_adapter(pair[0])
    error = relative_errors(
        factor_mean([adapter, adapter], [0.5, 0.5]),
        delta_mean([adapter, adapter], [0.5, 0.5]),
    )
    assert error["overall"] < 1e-6


def test_the_norm_of_a_product_needs_no_product():
    b, a = torch.randn(40, 3), torch.randn(3, 50)
    assert squared_norm(b, a) == pytest.approx(float((b @ a).norm() ** 2), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_rslora": True}, "rsLoRA"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias: lora_only"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "LOHA"}, "LOHA"),
    ],
)
def test_a_variant_without_a_plain_delta_is_refused(pair, tmp_path, changes, words):
    folder = edit_config(pair[0], tmp_path / "variant", **changes)
    with pytest.raises(UserError, match=words) as error:
        read_adapter(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}])
def test_variants_made_by_peft_itself_are_refused(make_adapter, tmp_path, options):
    with pytest.raises(UserError, match="cannot be averaged"):
        read_adapter(make_adapter(tmp_path, **options))


def edit_tensors(source, target, edit):
    shutil.copytree(source, target)
    tensors = load_file(target / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, target / "adapter_model.safetensors")
    return target


def test_an_adapter_without_a_score_head_is_refused(pair, tmp_path):
    drop = lambda tensors: tensors.pop("base_model.model.score.weight")  # noqa: E731
    with pytest.raises(UserError, match="no score head"):
        read_adapter(edit_tensors(pair[0], tmp_path / "x", drop))


def test_an_adapter_with_a_nan_is_refused(pair, tmp_path):
    def spoil(tensors):
        next(t for n, t in tensors.items() if "lora_A" in n)[0, 0] = float("nan")

    with pytest.raises(UserError, match="NaN"):
        read_adapter(edit_tensors(pair[0], tmp_path / "x", spoil))


def test_a_truncated_adapter_is_refused(pair, tmp_path):
    shutil.copytree(pair[0], tmp_path / "x")
    path = tmp_path / "x/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_adapter(tmp_path / "x")


@pytest.mark.parametrize(
    "weights",
    [[float("nan"), 0.5], [0.5, 0.6], [-0.5, 1.5], [float("inf"), 0.0], [1.0]],
)
def test_weights_must_make_a_mean(pair, weights):
    with pytest.raises(UserError, match="fold weights"):
        delta_mean([read_adapter(folder) for folder in pair], weights)


def test_adapters_of_different_targets_are_refused(pair, make_adapter, tmp_path):
    other = make_adapter(tmp_path, target_modules=["q_proj"])
    with pytest.raises(UserError, match="different modules, such as"):
        delta_mean([read_adapter(pair[0]), read_adapter(other)], [0.5, 0.5])


def test_adapters_of_different_bases_are_refused(pair, tmp_path):
    other = edit_config(pair[1], tmp_path / "x", base_model_name_or_path="elsewhere")
    with pytest.raises(UserError, match="trained on base elsewhere"):
        delta_mean([read_adapter(pair[0]), read_adapter(other)], [0.5, 0.5])


def test_adapters_of_different_heads_are_refused(pair, tmp_path):
    def widen(tensors):
        tensors["base_model.model.score.weight"] = torch.zeros(4, 32)

    other = read_adapter(edit_tensors(pair[1], tmp_path / "x", widen))
    with pytest.raises(UserError, match=r"x: score head \(4, 32\)$"):
        delta_mean([read_adapter(pair[0]), other], [0.5, 0.5])


def test_factor_mean_refuses_different_ranks(pair, make_adapter, tmp_path):
    other = make_adapter(tmp_path, rank=3)
    with pytest.raises(UserError, match="one rank and alpha"):
        factor_mean([read_adapter(pair[0]), read_adapter(other)], [0.5, 0.5])


@pytest.mark.parametrize("method", ["delta_mean", "factor_mean"])
def test_the_two_rules_from_folds_to_one_model(
    method, pair, tiny_model_folder, tmp_path
):
    weights = tmp_path / "weights.json"
    write_json(weights, {"folds": [1, 0], "weights": [0.25, 0.75], "method": "x"})
    adapter = tmp_path / "ensemble/adapter_model.safetensors"
    average_adapters.main(
        adapters=[folder / "adapter_model.safetensors" for folder in pair],
        folds=[0, 1],
        weights=weights,
        method=method,
        adapter=adapter,
        report=tmp_path / "ensemble/average.json",
    )
    report = read_json(tmp_path / "ensemble/average.json")
    assert report["weights"] == [0.75, 0.25]
    assert report["factor_mean_relative_error"]["overall"] > 0.3
    expected = {"delta_mean": 4, "factor_mean": 2}[method]
    assert read_adapter(adapter.parent).rank == expected

    base = shutil.copytree(tiny_model_folder("llama"), tmp_path / "base")
    write_manifest(base)
    model = tmp_path / "merged/model.safetensors"
    merge_adapter.main(base / "manifest.json", adapter, "bfloat16", model)
    report = read_json(tmp_path / "merged/merge.json")
    assert 0 < report["cast_error"]["max_abs"] < 0.01
    assert report["n_merged_modules"] == 14
    load_plain(model.parent)


def test_folds_that_do_not_match_the_weights_are_refused(pair, tmp_path):
    write_json(tmp_path / "w.json", {"folds": [0, 2], "weights": [0.5, 0.5]})
    files = [folder / "adapter_model.safetensors" for folder in pair]
    with pytest.raises(UserError, match=r"fold 1 is not in folds \[0, 2\]"):
        average_adapters.main(
            files, [0, 1], tmp_path / "w.json", "delta_mean", tmp_path, tmp_path
        )
