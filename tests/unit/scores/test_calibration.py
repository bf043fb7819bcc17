from dataclasses import replace

import numpy as np
import pytest
from calibrate_logits import main as calibrate_logits
from pyarrow import Table
from scipy.optimize import approx_fprime
from scipy.special import log_softmax, softmax

from prefdistill.classes import swap_classes
from prefdistill.errors import UserError
from prefdistill.scores.calibration import (
    Scaling,
    calibrate_judge,
    calibrate_teacher,
    cross_fit,
    fit_scaling,
    information_gain,
    pool_views,
    scaled_log_loss,
)
from prefdistill.scores.metrics import Labels, log_loss
from prefdistill.scores.views import as_answers, symmetrise
from prefdistill.settings import ScalingSettings
from prefdistill.storage.digests import file_digest
from prefdistill.storage.logits import Logits, read_logits, write_logits
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import FOLD_SCHEMA, write_table

VIEWS = ["AB", "BA"]
META = {"base": "x", "views": VIEWS}
VECTOR = ScalingSettings(method="vector", tied=True)


def draw(probs, rng):
    return (probs.cumsum(axis=1) < rng.random((len(probs), 1))).sum(axis=1)


def plain(n=20_000, a=(0.5, 0.5, 1.5), b=(-0.1, -0.1, 0.2), seed=0):
    """Draw one view of logits whose labels follow softmax(a * z + b)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, 1, 3))
    return logits, draw(softmax(np.array(a) * logits[:, 0] + np.array(b), axis=1), rng)


def teacher(n=1200, sharpness=1.0, gain=1.0, seed=0):
    """Draw a swap-equivariant teacher with separate noise in each view."""
    rng = np.random.default_rng(seed)
    truth = gain * rng.normal(size=(n, 3))
    labels = draw(softmax(truth, axis=1), rng)
    noise = 0.3 * rng.normal(size=(n, 2, 3))
    shown = np.stack([truth, swap_classes(truth)], axis=1) + noise
    ids = np.array([f"train:{i}" for i in range(n)])
    split = np.array((["train", "dev", "dev", "select"] * n)[:n])
    scores = Logits(ids, split, np.float32(sharpness * shown), META)
    group = np.array([f"g{i // 5}" for i in range(n)])
    return scores, Labels(ids, split, labels, group, np.array(["train"] * n))


@pytest.mark.parametrize("n_views", [1, 2])
def test_gradient_equals_finite_differences(n_views):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, n_views, 3)), rng.integers(3, size=9)
    point = rng.normal(size=6)

    def loss(theta):
        return scaled_log_loss(theta[:3], theta[3:], logits, labels)[0]

    gradient = scaled_log_loss(point[:3], point[3:], logits, labels)[1]
    assert gradient == pytest.approx(approx_fprime(point, loss, 1e-7), abs=1e-5)


def test_loss_of_two_views_is_that_of_the_average():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 2, 3)), rng.integers(3, size=9)
    a, b = np.array([0.5, 2, 1]), np.array([0.1, 0, -0.3])
    expected = log_loss(softmax(a * logits + b, axis=2).mean(axis=1), labels)
    assert scaled_log_loss(a, b, logits, labels)[0] == pytest.approx(expected)


@pytest.mark.parametrize("tied", [False, True])
def test_recovers_known_parameters(tied):
    fit = fit_scaling(*plain(), method="vector", tied=tied)
    assert fit.a == pytest.approx((0.5, 0.5, 1.5), abs=0.05)
    assert fit.b == pytest.approx((-0.1, -0.1, 0.2), abs=0.05)
    assert sum(fit.b) == pytest.approx(0, abs=1e-9)
    assert (fit.a[0] == fit.a[1]) == tied


def test_recovers_an_untied_position_bias():
    a, b = (0.6, 1.2, 1.0), (0.3, -0.2, -0.1)
    fit = fit_scaling(*plain(a=a, b=b), method="vector", tied=False)
    assert fit.a == pytest.approx(a, abs=0.06)
    assert fit.b == pytest.approx(b, abs=0.06)


def test_recovers_a_temperature():
    logits, labels = plain(a=(0.4, 0.4, 0.4), b=(0, 0, 0))
    fit = fit_scaling(logits, labels, method="temperature", tied=True)
    assert fit.a == pytest.approx((0.4,) * 3, abs=0.02)
    assert fit.b == (0, 0, 0)
    assert fit_scaling(logits, labels, method="none", tied=True) == Scaling(
        "none", True
    )


def test_fit_is_idempotent_and_never_worse_on_its_rows():
    logits, labels = plain(2000)
    fit = fit_scaling(logits, labels, method="vector", tied=True)
    scaled = fit.apply(logits)
    before = log_loss(softmax(logits[:, 0], axis=1), labels)
    assert log_loss(softmax(scaled[:, 0], axis=1), labels) < before
    again = fit_scaling(scaled, labels, method="vector", tied=True)
    assert again.a == pytest.approx((1, 1, 1), abs=0.01)


def test_tied_scaling_commutes_with_the_swap():
    fit = fit_scaling(*plain(500), method="vector", tied=True)
    logits = plain(50, seed=3)[0]
    assert (swap_classes(fit.apply(logits)) == fit.apply(swap_classes(logits))).all()


def test_scales_stay_positive_and_finite_on_hostile_rows():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 1, 3))
    wrong = logits[:, 0].argmin(axis=1)
    fit = fit_scaling(logits, wrong, method="vector", tied=True)
    assert min(fit.a) > 0
    separable = fit_scaling(
        30 * np.eye(3)[wrong][:, None], wrong, method="vector", tied=False
    )
    assert np.isfinite([*separable.a, *separable.b]).all()
    no_tie = fit_scaling(logits, rng.integers(2, size=40), method="vector", tied=True)
    assert np.exp(log_softmax(no_tie.b))[2] > 1e-4


@pytest.mark.parametrize("label", [-1, 3])
def test_rejects_a_label_out_of_range(label):
    with pytest.raises(ValueError, match="labels must lie in"):
        fit_scaling(np.zeros((1, 1, 3)), np.array([label]), method="vector", tied=True)


def test_pooled_views_have_the_labels_that_they_show():
    logits = np.arange(12.0).reshape(2, 2, 3)
    pooled, labels = pool_views(logits, np.array([0, 2]), VIEWS)
    assert labels.tolist() == [0, 1, 2, 2]
    assert (pooled.reshape(2, 2, 3) == logits).all()


def test_cross_fit_does_not_see_its_own_group():
    logits, labels = plain(200)
    groups = np.arange(200) // 4
    settings = {"method": "vector", "tied": True}
    scaled = cross_fit(logits, labels, groups, **settings)
    changed = labels.copy()
    changed[groups == 7] = (changed[groups == 7] + 1) % 3
    again = cross_fit(logits, changed, groups, **settings)
    assert (scaled[groups == 7] == again[groups == 7]).all()
    assert (scaled != again).any()
    with pytest.raises(UserError, match="too few"):
        cross_fit(logits, labels, np.zeros(200), **settings)


def test_an_overconfident_teacher_is_repaired():
    scores, labels = teacher(sharpness=5)
    fit, record = calibrate_teacher(scores, labels, VECTOR)
    assert record["nll_difference"]["high"] < 0
    assert record["ece_after"] < record["ece_before"] / 3
    assert record["n_dev"] == 600
    assert record["a"] == fit.a
    assert fit.a[0] == pytest.approx(0.2, abs=0.05)
    assert record["gate"]["passed"]


def test_a_calibrated_teacher_gets_no_worse():
    scores, labels = teacher(sharpness=1, seed=4)
    _, record = calibrate_teacher(scores, labels, VECTOR)
    assert record["nll_difference"]["low"] < 0.005
    assert abs(record["nll_after"] - record["nll_before"]) < 0.01


def test_gate_stops_a_teacher_of_chance():
    scores, labels = teacher(seed=1)
    shuffled = np.random.default_rng(0).permutation(labels.label)
    chance = Labels(labels.ids, labels.split, shuffled, labels.group, labels.source)
    _, record = calibrate_teacher(scores, chance, VECTOR)
    assert not record["gate"]["passed"]
    assert record["gate"]["low"] <= 0


def test_information_gain_by_hand():
    ids = np.array(["x", "y"])
    labels = Labels(ids, ids, np.array([0, 2]), ids, ids)
    probs = np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    gains, span = information_gain(probs, labels, np.array([0.25, 0.25, 0.5]))
    assert gains == pytest.approx(np.log([2, 1.2]))
    assert span.mean == pytest.approx(gains.mean())


def test_a_teacher_without_dev_rows_is_refused():
    scores, labels = teacher(40)
    train = scores.select(scores.split == "train")
    with pytest.raises(UserError, match="no dev row"):
        calibrate_teacher(train, labels, VECTOR)


@pytest.mark.parametrize("views", [["AB", "BA"], ["BA"]])
def test_judge_is_fitted_for_its_averaged_probabilities(views):
    scores, labels = teacher(2000, sharpness=3)
    places = [VIEWS.index(view) for view in views]
    logits = scores.logits[:, places]
    scores = replace(scores, logits=logits, meta={"views": views})
    fit, record = calibrate_judge(scores, labels, "vector")
    assert record["n_select"] == 500
    assert record["nll_after"] < record["nll_before"]
    select = scores.split == "select"
    logits, known = scores.logits[select], labels.label[select]
    best = log_loss(symmetrise(fit.apply(logits), views), known)
    for factor in (0.8, 1.25):
        other = Scaling("vector", True, tuple(factor * a for a in fit.a), fit.b)
        assert log_loss(symmetrise(other.apply(logits), views), known) > best
    assert as_answers(fit.apply(logits), views) == pytest.approx(
        fit.apply(as_answers(logits, views))
    )


@pytest.mark.parametrize("method", ["temperature", "none"])
def test_judge_may_be_scaled_by_less(method):
    scores, labels = teacher(2000, sharpness=3)
    fit, _ = calibrate_judge(scores, labels, method)
    assert fit.b == (0, 0, 0)
    assert len(set(fit.a)) == 1
    assert (fit.a == (1, 1, 1)) == (method == "none")


def test_judge_needs_labels_on_select():
    scores, labels = teacher(40)
    without = labels.rows(labels.split != "select")
    with pytest.raises(UserError, match="select_fraction"):
        calibrate_judge(scores, without, "vector")


@pytest.mark.parametrize("method", ["vector", "none"])
def test_script(tmp_path, method):
    scores, labels = teacher(400, sharpness=4)
    columns = {
        "id": labels.ids.tolist(),
        "source": labels.source.tolist(),
        "split": labels.split.tolist(),
        "group": labels.group.tolist(),
        **{name: [["x"]] * 400 for name in ("prompt", "response_a", "response_b")},
    }
    for c, name in enumerate(("winner_model_a", "winner_model_b", "winner_tie")):
        columns[name] = (labels.label == c).astype(int).tolist()
    order = np.random.default_rng(0).permutation(400)
    table = Table.from_pydict(columns, FOLD_SCHEMA).take(order)
    write_table(tmp_path / "fold0.parquet", table, FOLD_SCHEMA)
    adapter = tmp_path / "adapter_model.safetensors"
    adapter.write_bytes(b"of these logits")
    scores = replace(scores, meta=scores.meta | {"adapter": file_digest(adapter)})
    write_logits(tmp_path / "logits.npz", scores)
    calibrate_logits(
        tmp_path / "logits.npz",
        adapter,
        tmp_path / "fold0.parquet",
        tmp_path / "calibrated.npz",
        tmp_path / "calibration.json",
        ScalingSettings(method=method, tied=True),
    )
    record = read_json(tmp_path / "calibration.json")
    calibrated = read_logits(tmp_path / "calibrated.npz")
    expected = scores.logits * np.array(record["a"]) + np.array(record["b"])
    assert calibrated.logits == pytest.approx(expected, abs=1e-5)
    assert calibrated.ids.tolist() == scores.ids.tolist()
    assert calibrated.meta["base"] == "x"
    assert calibrated.meta["calibration"]["a"] == record["a"]
    assert len(calibrated.meta["calibration"]["fingerprint"]) == 16
    assert (record["nll_after"] == record["nll_before"]) == (method == "none")
