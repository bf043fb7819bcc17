import numpy as np
import pyarrow as pa
import pytest
import torch

from prefdistill.data.prompts import encode_pairs
from prefdistill.engine.packing import collate, pack
from prefdistill.errors import Interrupted, UserError
from prefdistill.models import scoring as inference
from prefdistill.models.forward import classify
from prefdistill.models.loading import load_classifier
from prefdistill.models.scoring import score_pairs, subset_rows
from prefdistill.settings import TextSettings, read
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.storage.logits import VIEWS

TEXT = {
    "template": "{prompt} A: {response_a} B: {response_b} =",
    "turn": "<turn {n}>: ",
    "max_length": 60,
    "prompt_share": 0.25,
    "head_share": 0.5,
}


@pytest.fixture(scope="module")
def encoded(tiny_tokenizer):
    sizes = np.random.default_rng(0).integers(0, 20, (9, 3)).tolist()
    table = pa.table(
        {
            "id": [str(n) for n in range(9)],
            "prompt": [["tall " * p] for p, _, _ in sizes],
            "response_a": [["one " * a] for _, a, _ in sizes],
            "response_b": [["two " * b] for _, _, b in sizes],
        }
    )
    return encode_pairs(table, tiny_tokenizer, read(TextSettings, TEXT))


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return load_classifier(tiny_model_folder("qwen2"), "fp32")


@pytest.mark.parametrize("views", [("AB", "BA"), ("BA",)])
def test_scores_equal_those_of_single_rows(model, encoded, views):
    logits = score_pairs(model, encoded, views=views, token_budget=100)
    assert logits.shape == (9, len(views), 3)
    assert logits.dtype == np.float32
    for row in range(9):
        for column, view in enumerate(views):
            with torch.no_grad():
                expected = classify(model, collate([encoded.tokens(row, view)]))[0]
            np.testing.assert_allclose(
                logits[row, column], expected.numpy(), atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize(
    "template",
    [
        "{prompt} A: {response_a} B: {response_b} =",
        "{prompt}{response_a}{response_b}",  # the answers may be all that is not shared
        "{response_a}{response_b}{prompt}",  # only BOS is shared
        "A {response_a} P {prompt} B {response_b}",
    ],
)
def test_empty_and_equal_answers_in_any_template(model, tiny_tokenizer, template):
    """In passes for one row, for some pairs, for all."""
    pairs = [("", "", ""), ("hi", "", ""), ("hi", "x", "x"), ("", "tall ", "")]
    pairs += [("tall " * 90, "a", "b"), ("a", "b", "tall " * 90), ("a", "b " * 9, "c")]
    table = pa.table(
        {"id": [str(n) for n in range(len(pairs))]}
        | {
            name: [[pair[column]] for pair in pairs]
            for column, name in enumerate(("prompt", "response_a", "response_b"))
        }
    )
    encoded = encode_pairs(
        table, tiny_tokenizer, read(TextSettings, TEXT | {"template": template})
    )
    with torch.no_grad():
        expected = [
            [classify(model, collate([encoded.tokens(row, view)]))[0] for view in VIEWS]
            for row in range(len(pairs))
        ]
    expected = torch.stack([torch.stack(views) for views in expected]).numpy()
    for budget in (1, 80, 9999):
        scored = score_pairs(model, encoded, token_budget=budget)
        np.testing.assert_allclose(scored, expected, atol=1e-5, rtol=1e-5)
    turned = score_pairs(model, encoded, views=VIEWS[::-1], token_budget=80)
    np.testing.assert_allclose(turned, expected[:, ::-1], atol=1e-5, rtol=1e-5)


def test_scores_do_not_depend_on_the_token_budget(model, encoded):
    small = score_pairs(model, encoded, token_budget=10)
    large = score_pairs(model, encoded, token_budget=10_000)
    np.testing.assert_allclose(small, large, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("budget", "shares"), [(10, False), (10_000, True)])
def test_prompts_are_computed_once_where_a_pass_holds_both_orders(
    model, encoded, monkeypatch, budget, shares
):
    """Not where only one order is scored."""
    sizes = []

    def counted(model, batch):
        sizes.append(batch.input_ids.size)
        return classify(model, batch)

    def n_computed(**options):
        sizes.clear()
        score_pairs(model, encoded, token_budget=budget, **options)
        return sum(sizes)

    monkeypatch.setattr(inference, "classify", counted)
    whole, n_common = int(encoded.lengths.sum()), int(encoded.prefix_lengths.sum())
    assert n_common > 50
    assert n_computed() == 2 * whole - n_common * shares
    assert n_computed(views=("BA",)) == whole


def watched_passes(monkeypatch):
    """The arguments of every forward pass from now on, as they come."""
    passes = []

    def watched(*arguments):
        passes.append(arguments)
        return classify(*arguments)

    monkeypatch.setattr(inference, "classify", watched)
    return passes


def test_a_logit_that_is_not_finite_is_an_error(tiny_model_folder, encoded):
    model = load_classifier(tiny_model_folder("llama"), "fp32")
    model.score.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"row id \d: .* \(18 of 18 rows"):
        score_pairs(model, encoded)


def test_a_signal_ends_scoring(model, encoded, monkeypatch):
    monkeypatch.setattr(inference, "stop_requested", lambda: True)
    with pytest.raises(Interrupted, match="0 of") as stop:
        score_pairs(model, encoded)
    assert not stop.value.progressed


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_interrupted_scoring_goes_on(model, encoded, tmp_path, monkeypatch, stop_after):
    whole = score_pairs(model, encoded, token_budget=60)
    checkpoints = Checkpoints(tmp_path / "job", "abc")
    calls = iter(range(1000))
    monkeypatch.setattr(inference, "stop_requested", lambda: next(calls) == stop_after)
    with pytest.raises(Interrupted, match=f"{stop_after} of") as stop:
        score_pairs(model, encoded, token_budget=60, checkpoints=checkpoints)
    assert stop.value.progressed
    monkeypatch.undo()
    passes = watched_passes(monkeypatch)
    resumed = score_pairs(model, encoded, token_budget=999, checkpoints=checkpoints)
    assert (resumed == whole).all()
    common = np.repeat(encoded.prefix_lengths, 2) * np.tile([0, 1], len(encoded.ids))
    n_bins = len(pack(np.repeat(encoded.lengths, 2), 60, common))
    assert len(passes) == n_bins - stop_after


@pytest.mark.parametrize("call", range(5))
def test_half_the_token_budget_gives_the_same_scores(
    model, encoded, monkeypatch, call, caplog
):
    whole = score_pairs(model, encoded, token_budget=160)
    calls = iter(range(1000))

    def short(*arguments):
        if next(calls) == call:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return classify(*arguments)

    monkeypatch.setattr(inference, "classify", short)
    with caplog.at_level("WARNING"):
        halved = score_pairs(model, encoded, token_budget=160)
    assert "token_budget lowered to 80" in caplog.text
    np.testing.assert_allclose(halved, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_queued", [2, 3, 100])
def test_bins_queued_together_score_as_alone(model, encoded, monkeypatch, n_queued):
    alone = score_pairs(model, encoded, token_budget=60)
    monkeypatch.setattr(inference, "_queued_bins", lambda model: n_queued)
    together = score_pairs(model, encoded, token_budget=60)
    assert (together == alone).all()


def test_memory_that_is_short_for_one_row_is_one_line(model, encoded, monkeypatch):
    def never_enough(*_):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(inference, "classify", never_enough)
    with pytest.raises(UserError, match="out of memory with one row"):
        score_pairs(model, encoded)


def test_no_rows_score_to_nothing(model, encoded, tiny_tokenizer):
    names = ("id", "prompt", "response_a", "response_b")
    empty = pa.table({name: pa.array([], pa.string()) for name in names})
    logits = score_pairs(
        model, encode_pairs(empty, tiny_tokenizer, read(TextSettings, TEXT))
    )
    assert logits.shape == (0, 2, 3)


def test_subset_rows():
    split = np.array(["dev", "train", "train", "test", "train"])
    assert subset_rows(split, None, None, 0).all()
    assert subset_rows(split, [1, 2], None, 0).tolist() == [
        True,
        False,
        True,
        True,
        False,
    ]
    sampled = subset_rows(split, None, 1, 0)
    assert sampled.sum() == 3
    assert sampled[[0, 3]].all()
    assert (sampled == subset_rows(split, None, 1, 0)).all()
    assert subset_rows(split, None, 7, 0).all()
    with pytest.raises(UserError, match=r"inference\.rows"):
        subset_rows(split, [5, 9], None, 0)
