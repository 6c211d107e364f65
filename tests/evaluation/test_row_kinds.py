"""What each row of an evaluation shows: from the file or, of older files, from its label."""

import pytest

from depthdist.evaluation.row_kinds import RowKind, adapter_row, infer_row_kind, row_kinds

BY_LABEL = {
    "constant 1542 mm": RowKind.CONSTANT,
    "constant 1200 mm, nearest to the mean of the scored data's train": RowKind.CONSTANT,
    "untrained": RowKind.UNTRAINED,
    "calibrated, before training": RowKind.UNTRAINED,
    "untrained, disparity-aligned": RowKind.UNTRAINED_ALIGNED,
    "adapter, epoch 3": RowKind.ADAPTER,
    "best adapter, epoch 3": RowKind.ADAPTER,
    "adapter, epoch 3, depth-aligned": RowKind.ADAPTER_ALIGNED,
    "adapter, epoch 3, flip": RowKind.ADAPTER_REFINED,
    "adapter, epoch 3, tiles": RowKind.ADAPTER_REFINED,
    "adapter, epoch 3 + detail": RowKind.ADAPTER_REFINED,
}


@pytest.mark.parametrize(("label", "kind"), BY_LABEL.items())
def test_the_kind_of_a_row_in_an_older_file_is_inferred_from_its_label(label, kind):
    assert infer_row_kind(label) is kind
    assert row_kinds({"rows": {label: {}}}) == {label: kind}


def test_the_kinds_in_a_file_count_whatever_the_labels_say():
    rows = {"mine": {}, "adapter": {}}
    evaluation = {"rows": rows, "kinds": {"mine": "adapter", "adapter": "adapter-aligned"}}
    assert row_kinds(evaluation) == {"mine": RowKind.ADAPTER, "adapter": RowKind.ADAPTER_ALIGNED}
    assert adapter_row(evaluation) == "mine"


def test_an_evaluation_without_a_row_of_the_adapter_is_an_error():
    with pytest.raises(KeyError, match="no row of the run's adapter"):
        adapter_row({"rows": {"untrained": {}, "adapter, epoch 1, flip": {}}})


@pytest.mark.parametrize("kind", RowKind)
def test_only_aligned_rows_are_aligned_and_only_rows_of_the_adapter_are_the_adapters(kind):
    assert kind.is_aligned == kind.value.endswith("-aligned")
    assert kind.is_adapter == kind.value.startswith("adapter")
