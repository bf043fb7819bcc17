"""Classes as shown and as answers, and what the swap of the answers does to them."""

import numpy as np

from prefdistill.classes import CLASSES, VERDICTS, swap_classes, swap_labels


def test_classes_and_verdicts_are_in_one_order():
    assert CLASSES == ("first", "second", "tie")
    assert VERDICTS == ("A", "B", "tie")


def test_swap_is_its_own_inverse_and_keeps_the_tie():
    values = np.arange(6.0).reshape(2, 3)
    assert swap_classes(values)[0].tolist() == [1, 0, 2]
    assert (swap_classes(swap_classes(values)) == values).all()


def test_labels_swap_as_their_classes_do():
    labels = np.array([0, 1, 2, 1])
    assert swap_labels(labels).tolist() == [1, 0, 2, 0]
    assert (np.eye(3)[swap_labels(labels)] == swap_classes(np.eye(3)[labels])).all()
