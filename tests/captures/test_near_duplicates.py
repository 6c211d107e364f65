"""Near-duplicates are found through exposure, motion, noise and JPEG.

Other images of the same kind are not; every number agrees with a plain loop.
"""

import io

import numpy as np
import pytest
from helpers.captures import SHARED
from PIL import Image

from depthdist.captures import near_duplicates as duplicates
from depthdist.captures.near_duplicates import (
    FINGERPRINT,
    SIDE,
    THRESHOLD,
    NearDuplicate,
    find_near_duplicates,
    fingerprint,
    format_warning,
    similarity,
    summarize_split,
)

NUM = 24


def crate_image(seed, size=(150, 243)):
    """One of a family (H, W, 3) uint8: a crate of discs, lit from above, each in its own place and
    of its own size."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]] / size[0]
    shade = np.ones(size)
    for _ in range(14):
        distance = np.hypot(rows - rng.uniform(0, 1), columns - rng.uniform(0, 1.6))
        radius, dark = rng.uniform(0.08, 0.25), rng.uniform(0.5, 0.8)
        shade = np.where(distance < radius, dark + 0.1 * np.cos(40 * distance), shade)
    grey = shade * (
        150 - 115 * rows + 60 * (columns < 0.1) + 30 * (abs(rows - 0.5) < 0.05)
    )  # the same light and crate for all
    return (grey[..., None] * [1.0, 0.97, 0.9]).clip(0, 255).astype(np.uint8)


def exposed(stops):
    return lambda rgb: (rgb * 2.0**stops).clip(0, 255).astype(np.uint8)


def moved(rows, columns):
    """Seen by a camera that moved by shares of the width.

    What comes into view is what the edge shows.
    """

    def move(rgb):
        y, x = (round(part * rgb.shape[1]) for part in (rows, columns))
        pad = [(max(y, 0), max(-y, 0)), (max(x, 0), max(-x, 0)), (0, 0)]
        height, width = rgb.shape[:2]
        return np.pad(rgb, pad, mode="edge")[max(-y, 0) :, max(-x, 0) :][:height, :width]

    return move


def noisy(sigma):
    return lambda rgb: (
        (rgb + np.random.default_rng(0).normal(0, sigma, rgb.shape)).clip(0, 255).astype(np.uint8)
    )


def jpeg(quality):
    def save(rgb):
        file = io.BytesIO()
        Image.fromarray(rgb).save(file, "JPEG", quality=quality)
        return np.array(Image.open(file))

    return save


CHANGES = {
    "half the exposure": [exposed(-1)],
    "double, with clipping": [exposed(1)],
    "a warm cast": [lambda rgb: (rgb * [1.0, 0.85, 0.7]).astype(np.uint8)],
    "2 % to the right": [moved(0, 0.02)],
    "2 % up and to the left": [moved(-0.02, -0.02)],
    "noise": [noisy(12)],
    "JPEG": [jpeg(40)],
    "another size": [lambda rgb: np.array(Image.fromarray(rgb).resize((200, 120)))],
    "all together": [moved(0.02, -0.02), exposed(0.8), noisy(8), jpeg(60)],
}


@pytest.fixture(scope="module")
def family():
    return [crate_image(seed) for seed in range(NUM)]


@pytest.fixture(scope="module")
def prints(family):
    return np.stack([fingerprint(rgb) for rgb in family])


@pytest.mark.parametrize("what", CHANGES)
def test_a_near_duplicate_is_found_through(what, family, prints):
    changed = family
    for change in CHANGES[what]:
        changed = [change(rgb) for rgb in changed]
    twins = find_near_duplicates(np.stack([fingerprint(rgb) for rgb in changed]), prints)
    assert sorted((t.a, t.b) for t in twins) == [(i, i) for i in range(NUM)]
    assert not any(t.exact for t in twins)


def test_images_of_one_family_are_no_duplicates_though_their_plain_thumbnails_resemble_each_other(
    family, prints
):
    others = np.stack([fingerprint(crate_image(seed)) for seed in range(100, 100 + NUM)])
    assert find_near_duplicates(prints) == find_near_duplicates(prints, others) == []
    assert max(similarity(a, b) for a in prints for b in others) < THRESHOLD - 0.1
    plain = np.corrcoef(
        [
            np.asarray(
                Image.fromarray(rgb).convert("L").resize((24, 24), Image.Resampling.BOX)
            ).ravel()
            for rgb in family
        ]
    )
    assert plain[np.triu_indices(NUM, 1)].max() > 0.85


def test_a_shift_is_seen_only_as_far_as_it_is_looked_for(family):
    rgb = family[0]
    far = fingerprint(moved(0, 0.1)(rgb))
    assert (
        similarity(fingerprint(rgb), far, shift=0)
        < similarity(fingerprint(rgb), far)
        < THRESHOLD
        < similarity(fingerprint(rgb), far, shift=3)
    )


def test_exact_ones_are_those_of_the_same_pixels(family):
    nearly = family[3].copy()
    nearly[70, 100] ^= 3
    found = find_near_duplicates(
        np.stack([fingerprint(rgb) for rgb in (nearly, family[3], Image.fromarray(family[3]))]),
        np.stack([fingerprint(rgb) for rgb in family]),
    )
    assert [(t.a, t.b, t.exact) for t in found] == [(1, 3, True), (2, 3, True), (0, 3, False)]
    assert found[0].similarity == 1.0
    assert found[2].similarity > 0.99


def test_within_one_set_each_is_paired_with_an_earlier_one(family):
    prints = np.stack(
        [
            fingerprint(rgb)
            for rgb in (family[0], family[1], noisy(5)(family[0]), family[1], family[2], family[1])
        ]
    )
    assert [(t.a, t.b, t.exact) for t in find_near_duplicates(prints)] == [
        (3, 1, True),
        (5, 1, True),
        (2, 0, False),
    ]


def test_an_image_without_contrast_resembles_nothing_not_even_a_second_one():
    flat, faint = np.full((40, 60, 3), 90, np.uint8), np.full((40, 60, 3), 90, np.uint8)
    faint[3, 4] = 92
    prints = np.stack([fingerprint(flat), fingerprint(faint)])
    assert not prints["grey"].any()
    assert find_near_duplicates(prints) == []
    assert similarity(*prints) == 0
    assert [t.exact for t in find_near_duplicates(prints[:1], prints[:1])] == [True], (
        "but the very same file does"
    )


def test_a_negative_is_no_near_duplicate(family):
    assert (
        find_near_duplicates(
            np.stack([fingerprint(255 - rgb) for rgb in family]),
            np.stack([fingerprint(rgb) for rgb in family]),
        )
        == []
    )


@pytest.mark.parametrize("nums", [(0, 3), (3, 0), (0, 0)])
def test_of_nothing_nothing_is_found(nums, prints):
    assert find_near_duplicates(prints[: nums[0]], prints[: nums[1]]) == []
    assert find_near_duplicates(prints[:0]) == []


# ------------------------------------------------------------------------------------------ numbers


def loop(a, b, shift=1):
    """The highest correlation of two thumbnails over shifts, by NumPy in float64."""
    a, b, found = a["grey"].astype(float), b["grey"].astype(float), []
    for y in range(-shift, shift + 1):
        for x in range(-shift, shift + 1):
            rows, columns = range(max(0, -y), SIDE - max(0, y)), range(max(0, -x), SIDE - max(0, x))
            pairs = np.array([(a[r + y, c + x], b[r, c]) for r in rows for c in columns])
            found.append(np.corrcoef(pairs.T)[0, 1])
    return max(found)


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_similarity_is_the_highest_of_numpys_correlations(prints, shift):
    for a, b in ((0, 1), (2, 3), (4, 4)):
        assert similarity(prints[a], prints[b], shift) == pytest.approx(
            loop(prints[a], prints[b], shift), abs=1e-12
        )
        assert similarity(prints[a], prints[b], shift) == pytest.approx(
            similarity(prints[b], prints[a], shift), abs=1e-15
        )


def random_prints(num, seed):
    """Fingerprints of which some resemble each other."""
    rng = np.random.default_rng(seed)
    scenes = np.random.default_rng(0).normal(0, 40, (6, SIDE, SIDE))
    prints = np.zeros(num, FINGERPRINT)
    prints["grey"] = (
        scenes[rng.integers(0, 6, num)]
        + rng.normal(0, 1, (num, SIDE, SIDE)) * rng.uniform(5, 80, (num, 1, 1))
    ).clip(-127, 127)
    prints["pixels"] = rng.integers(0, num, num) + num * (rng.random(num) < 0.8) * (1 + seed)
    return prints


def brute(a, b, threshold):
    """Return what `find_near_duplicates` promises, by a double loop; `b` None within one set."""
    found = []
    for i in range(len(a)):
        candidates = range(i) if b is None else range(len(b))
        best = None
        for j in candidates:
            other = (a if b is None else b)[j]
            twin = (
                NearDuplicate(i, j, 1.0, True)
                if a[i]["pixels"] == other["pixels"]
                else NearDuplicate(i, j, similarity(a[i], other), False)
            )
            if best is None or (twin.exact, twin.similarity) > (best.exact, best.similarity):
                best = twin
        if best and (best.exact or best.similarity > threshold):
            found.append(best)
    return sorted(found, key=lambda t: (-t.exact, -t.similarity, t.a))


@pytest.mark.parametrize("block", [1, 7, 16, 1024])
def test_blocks_give_what_a_double_loop_gives_to_the_last_bit(monkeypatch, block):
    monkeypatch.setattr(duplicates, "BLOCK", block)
    a, b = random_prints(16, 1), random_prints(37, 2)
    b["pixels"][5], a["grey"][3] = a["pixels"][2], 0
    expected = brute(a, b, 0.5)
    assert find_near_duplicates(a, b, 0.5) == expected
    assert {t.exact for t in expected} == {True, False}
    assert 4 < len(expected) < 16
    assert find_near_duplicates(b, threshold=0.5) == brute(b, None, 0.5)


def test_the_worst_come_first_and_exact_ones_before_all():
    twins = find_near_duplicates(random_prints(60, 1), random_prints(60, 2), 0.3)
    assert len(twins) > 20
    assert [t.similarity for t in twins] == sorted((t.similarity for t in twins), reverse=True)


def test_products_of_fingerprints_are_exact_in_float32():
    extreme = np.zeros(2, FINGERPRINT)
    extreme["grey"] = 127
    extreme["grey"][:, ::2] = -127
    extreme["grey"][1, 5, 5] = 3
    x = extreme["grey"].reshape(2, -1)
    assert SIDE * SIDE * 127**2 < 2**24
    assert (
        x.astype(np.float32) @ x.astype(np.float32).T == x.astype(np.int64) @ x.astype(np.int64).T
    ).all()


def test_a_fingerprint_is_the_grey_less_its_local_mean_over_its_local_contrast(family):
    grey = np.asarray(
        Image.fromarray(family[7]).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    ).astype(float)
    expected = np.zeros((SIDE, SIDE))
    for r in range(SIDE):
        for c in range(SIDE):
            near = grey[max(r - 5, 0) : r + 6, max(c - 5, 0) : c + 6]
            expected[r, c] = (grey[r, c] - near.mean()) / np.sqrt(near.var() + 0.25 * grey.var())
    expected = np.clip(expected / np.sqrt((expected**2).mean()) * 127 / 4, -127, 127)
    assert np.abs(fingerprint(family[7])["grey"] - expected).max() <= 0.5 + 1e-9


# --------------------------------------------------------------------------------------- of a split


def test_a_summary_counts_validation_images_and_names_the_worst(family, prints):
    train = np.stack(
        [
            fingerprint(rgb)
            for rgb in (
                family[0],
                family[0],
                jpeg(30)(family[1]),
                noisy(20)(family[2]),
                crate_image(500),
            )
        ]
    )
    found = summarize_split(
        prints[:6], train, [f"v{i}" for i in range(6)], [f"t{i}" for i in range(5)]
    )
    assert (found["val_with_twin"], found["exact"]) == (3, 1)
    assert found["worst"][0] == [
        "v0",
        "t0",
        1.0,
    ]
    assert [w[:2] for w in found["worst"][1:]] == [["v1", "t2"], ["v2", "t3"]]
    assert 1 > found["worst"][1][2] > found["worst"][2][2] > THRESHOLD
    text = format_warning(found)
    assert "\n" not in text
    assert all(
        part in text
        for part in (
            "3 of 6 validation pictures",
            "1 to the pixel",
            "v0 and t0 (1.000), v1 and t2 (0.9",
            "--split session",
            "--split file",
        )
    )
    assert text.count(" and t") == 3
    assert "..." not in text
    assert format_warning(summarize_split(prints[:6], prints[6:], "abcdef", range(18))) is None


def test_a_summary_names_no_more_than_three(prints):
    found = summarize_split(prints, prints, range(NUM), range(NUM))
    assert found["val_with_twin"] == NUM
    assert len(found["worst"]) == 3
    assert ", ...:" in format_warning(found)


@pytest.mark.skipif(
    not (SHARED / "data/_compact/pcl_mosd").is_dir(), reason="../shared/data is absent"
)
def test_real_images_of_one_table_are_told_apart_and_a_shaken_second_look_is_not():
    paths = sorted((SHARED / "data/_compact/pcl_mosd").glob("*.webp"))
    images = [np.array(Image.open(path).convert("RGB")) for path in paths[::4]]
    prints = np.stack([fingerprint(rgb) for rgb in images])
    shaken = np.stack(
        [fingerprint(jpeg(80)(exposed(0.5)(moved(0.02, 0.02)(rgb)))) for rgb in images]
    )
    assert len(images) > 20
    assert sum(t.a == t.b for t in find_near_duplicates(shaken, prints)) >= 0.95 * len(images)
    assert (
        np.mean([similarity(a, b) > THRESHOLD for i, a in enumerate(prints) for b in prints[:i]])
        < 0.02
    )


def test_of_many_images_some_are_compared_and_the_summary_says_how_many(monkeypatch):
    monkeypatch.setattr("depthdist.captures.near_duplicates.MOST_PAIRS", 12)
    prints = np.array(
        [
            fingerprint(np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8))
            for i in range(9)
        ],
        FINGERPRINT,
    )
    found = summarize_split(
        prints, prints[:4], range(9), range(4)
    )  # 3 of the 9: the first, the middle and the last
    assert found == {
        "looked_at": 3,
        "val_with_twin": 1,
        "exact": 1,
        "worst": [[0, 0, 1.0]],
    }
    assert "1 of 3 validation pictures" in format_warning(found)
    assert summarize_split(prints, prints[4:5], range(9), range(1))["val_with_twin"] == 1, (
        "with one to compare with, all are"
    )
