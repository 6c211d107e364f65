"""The images of a run's report: where the cut goes."""

import numpy as np

from depthdist.reports.run_images import cut_place


def test_the_cut_goes_through_most_grooves():
    truth, mask, label = (
        np.full((30, 90), 1000.0),
        np.ones((30, 90), bool),
        np.zeros((30, 90), np.uint16),
    )
    label[12, 40:60:4] = 1
    label[20, 10:30] = 2
    row, first, last = cut_place(truth, mask, label)
    assert row == 12 and last - first == 30 and first <= 40 and last >= 57
    row, first, last = cut_place(truth, mask, None)
    assert 0 <= first < last <= 90
    assert cut_place(truth, np.zeros_like(mask), label)[2] <= 90
