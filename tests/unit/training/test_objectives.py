import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, softmax
from two_processes import DISTILLATION

from prefdistill.engine.packing import collate
from prefdistill.models.forward import classify, shares_prompts
from prefdistill.models.loading import load_classifier, load_language_model
from prefdistill.settings import DistillationSettings, LossWeights, read
from prefdistill.training.lessons import Lessons
from prefdistill.training.objectives import (
    cross_entropy,
    distillation_loss,
    distillation_objective,
    label_objective,
    next_token_losses,
    next_token_objective,
)

WEIGHTS = LossWeights(ce=0.5, kl=1.0, cosine=2.0)


def plain_loss(logits, targets, teachers, labelled, taught, weights, temperature):
    """The formula, a row at a time, in float64."""
    losses = []
    for row, z in enumerate(logits.astype(np.float64)):
        total = 0.0
        if labelled[row]:
            total -= weights.ce * (targets[row] * log_softmax(z)).sum()
        for k, t in enumerate(teachers[row].astype(np.float64)):
            if taught[row, k]:
                p, log_q = softmax(t / temperature), log_softmax(z / temperature)
                kl = (p * (np.log(p) - log_q)).sum() * temperature**2
                cos = cosine(softmax(z), softmax(t))
                total += weights.kl * kl + weights.cosine * cos
        n_teachers = teachers.shape[1]
        losses.append(total / (weights.ce + n_teachers * (weights.kl + weights.cosine)))
    return np.array(losses)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("n_teachers", [0, 1, 3])
def test_distillation_loss_is_the_formula(temperature, n_teachers):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    teachers = rng.normal(size=(6, n_teachers, 3)).astype(np.float32) * 2
    labelled = np.array([1, 1, 0, 1, 0, 1], dtype=bool)
    taught = rng.random((6, n_teachers)) < 0.6
    given = (targets, teachers, labelled, taught)
    loss = distillation_loss(
        torch.from_numpy(logits), *map(torch.from_numpy, given), WEIGHTS, temperature
    )
    expected = plain_loss(logits, *given, WEIGHTS, temperature)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_student_like_its_teacher_and_its_label_has_no_loss():
    logits = torch.tensor([[60.0, 0.0, 0.0]])
    loss = distillation_loss(
        logits,
        torch.tensor([[1.0, 0.0, 0.0]]),
        logits[:, None],
        torch.tensor([True]),
        torch.tensor([[True]]),
        WEIGHTS,
        1.0,
    )
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_cross_entropy_of_a_uniform_guess():
    loss = cross_entropy(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]))
    assert float(loss) == pytest.approx(np.log(3))


def test_swapped_rows_have_swapped_targets(tiny_model_folder):
    model = load_classifier(tiny_model_folder("llama"), "fp32")
    batch = collate([np.arange(4, 12), np.arange(4, 12), np.arange(20, 30)])
    rows, views = np.array([0, 0, 1]), np.array([0, 1, 1])
    targets = np.eye(3, dtype=np.float32)[[0, 2]]
    with torch.no_grad():
        losses = label_objective(targets)(model, batch, rows, views)
        logits = classify(model, batch)
    expected = -logits.log_softmax(1)[[0, 1, 2], [0, 1, 2]]
    torch.testing.assert_close(losses, expected)


def test_teacher_logits_are_taken_as_shown(tiny_model_folder):
    """The teacher's BA logits meet the BA row, unswapped; its weight multiplies."""
    model = load_classifier(tiny_model_folder("llama"), "fp32")
    batch = collate([np.arange(4, 12), np.arange(20, 30)])
    rows, views = np.array([1, 0]), np.array([1, 0])
    rng = np.random.default_rng(0)
    teachers = rng.normal(size=(2, 1, 2, 3)).astype(np.float32)
    lessons = Lessons(
        table=None,
        targets=np.eye(3, dtype=np.float32)[[0, 1]],
        is_labelled=np.array([True, True]),
        teacher_logits=teachers,
        has_teacher=np.array([[True], [True]]),
        row_weights=np.array([0.5, 2.0], dtype=np.float32),
        record={},
    )
    only_kl = {"weights": dict.fromkeys(DISTILLATION["weights"], 0.0) | {"kl": 1.0}}
    settings = read(DistillationSettings, DISTILLATION | only_kl)
    objective = distillation_objective(lessons, settings)
    with torch.no_grad():
        losses = objective(model, batch, rows, views).numpy()
        log_q = classify(model, batch).log_softmax(1).numpy()
    for place, (row, view) in enumerate(zip(rows, views, strict=True)):
        p = softmax(teachers[row, 0, view])
        expected = (p * (np.log(p) - log_q[place])).sum() * lessons.row_weights[row]
        assert losses[place] == pytest.approx(expected, abs=1e-5)


def test_next_token_losses_equal_the_plain_model(tiny_model_folder, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("prefdistill.training.objectives.CHUNK_TOKENS", 7)
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, 400, length) for length in (9, 2, 17)]
    plain = AutoModelForCausalLM.from_pretrained(
        tiny_model_folder("gemma2"), attn_implementation="eager"
    ).eval()
    model = load_language_model(tiny_model_folder("gemma2"), "fp32")
    with torch.no_grad():
        places = np.arange(3)
        losses = next_token_objective()(model, collate(rows), places, places)
        for row, loss in zip(rows, losses, strict=True):
            ids = torch.from_numpy(row)[None]
            expected = plain(input_ids=ids, labels=ids).loss
            torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert not shares_prompts(model)
    batch = collate([rows[0], rows[0]], 1, np.array([0, 3]))
    with pytest.raises(ValueError, match="share no tokens"):
        next_token_objective()(model, batch, places, places)


def test_next_token_gradients_do_not_depend_on_the_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 8, generator=generator, requires_grad=True)
    head = torch.nn.Linear(8, 30)
    ids = torch.arange(20)
    gradients = []
    for size in (1000, 6):
        monkeypatch.setattr("prefdistill.training.objectives.CHUNK_TOKENS", size)
        next_token_losses(hidden, head, 5.0, ids, [0, 12, 20]).sum().backward()
        gradients.append(hidden.grad.clone())
        hidden.grad = None
    torch.testing.assert_close(*gradients)
