"""Figures are the same bytes each time, and their labels read from the top down."""

import pytest

from prefdistill.report.drawing import as_words, make_axes, name_rows, save_figure
from prefdistill.report.figures import draw_curves


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_figure_is_the_same_bytes_each_time(tmp_path, suffix):
    paths = [tmp_path / f"{n}.{suffix}" for n in "ab"]
    for path in paths:
        save_figure(draw_curves({"m/0": [(1, 1.0), (2, 0.5)]}), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_rows_are_named_from_the_top_down():
    figure, (left, right) = make_axes(4.0, 2.0, 2)
    assert figure.axes == [left, right]
    name_rows(left, [as_words("teacher_calibrated"), "final"])
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["teacher calibrated", "final"]
    bottom, top = left.get_ylim()
    assert bottom > top
