"""A few training samples, repeated: the splits train and val of what is learned by heart."""

import pytest

from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.few_samples import FewSamples


@pytest.fixture
def dataset(data):
    return open_dataset(DataSettings(data=(str(data),)))


def test_both_splits_are_the_same_training_samples(dataset):
    few = FewSamples.of(dataset, 3, num_shown=10)
    num = dataset.count("train")
    expected = [dataset.find("train", k * num // 3)[1].key for k in range(3)]
    for split in ("train", "val"):
        assert few.count(split) == 3 and few.has(split)
        assert [few.find(split, number)[1].key for number in range(3)] == expected


def test_an_epoch_shows_each_sample_equally_often_in_another_order(dataset):
    order = FewSamples.of(dataset, 3, num_shown=10).order(seed=0)
    first, second = order.epoch(0).tolist(), order.epoch(1).tolist()
    assert sorted(first) == sorted(second) == [0] * 4 + [1] * 4 + [2] * 4
    assert first != second


def test_all_samples_of_an_epoch_are_shown_once_where_that_is_enough(dataset):
    num = dataset.count("train")
    assert sorted(FewSamples.of(dataset, num, num).order(0).epoch(0)) == list(range(num))


def test_its_content_is_another_than_the_datasets_and_than_that_of_other_samples(dataset):
    given = [(3, 10), (3, 20), (2, 10)]
    hashes = {FewSamples.of(dataset, *numbers).sha256 for numbers in given}
    assert len(hashes | {dataset.sha256}) == 4


def test_more_samples_than_there_are_is_one_line(dataset):
    num = dataset.count("train")
    expected = f"--overfit is {num + 1}: .* has {num} training samples"
    with pytest.raises(ValueError, match=expected):
        FewSamples.of(dataset, num + 1, num_shown=10)


def test_without_a_fold_the_others_are_left_once_an_epoch_and_none_is_for_validation(dataset):
    num = dataset.count("train")
    folds = [range(fold, num, 2) for fold in range(2)]
    parts = [FewSamples.without(dataset, fold) for fold in folds]
    for part, fold in zip(parts, folds):
        rest = sorted(set(range(num)) - set(fold))
        assert list(part.chosen) == rest and part.count("train") == len(rest)
        found = [part.find("train", number)[1].key for number in range(len(rest))]
        assert found == [dataset.find("train", number)[1].key for number in rest]
        assert sorted(part.order(0).epoch(0)) == list(range(len(rest)))
        assert not part.has("val")
        assert part.stats("train") == dataset.stats("train")
    whole = FewSamples.without(dataset, [])
    by_heart = FewSamples.of(dataset, num, num)
    assert whole.chosen == by_heart.chosen
    assert len({part.sha256 for part in (*parts, whole, by_heart, dataset)}) == 5
