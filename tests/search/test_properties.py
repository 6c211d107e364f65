"""What holds for every array, every name and every word, tried with those that hypothesis makes."""

import json
import warnings
from functools import reduce

import numpy as np
import pytest
import torch
from helpers.external_tars import npy
from helpers.settings import CHANGED
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from depthdist.captures.edge_agreement import describe_capture, describe_dataset, edge_scores
from depthdist.captures.layouts import find_pairs
from depthdist.captures.missing_values import count_missing, mask_constants, missing_constants
from depthdist.captures.readers import read_point_map
from depthdist.core.command_line import parse
from depthdist.core.errors import BadFile, SettingsError
from depthdist.core.settings import as_dict, flag_name
from depthdist.geometry.camera import fit_intrinsics
from depthdist.geometry.camera_view import find_view_problem
from depthdist.geometry.depth_range import DepthRange, denormalize_depth, normalize_depth
from depthdist.shards.encoding import count_flying, encode_mask, quantize, resize_nearest
from depthdist.shards.member_formats import read_npy
from depthdist.shards.splits import read_groups
from depthdist.shards.statistics import depth_stats, merge_stats, statistics

SPECIAL = [0.0, -0.0, -1.0, 65535.0, 1e9, 1e-30, 3e38, -3e38, float("inf"), float("nan")]
FLOATS = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.floats(250, 4000, width=32))
STEP_MM = 4000 / 65535


def maps(depth=()):
    """(H, W, *depth) float32 arrays of anything: most of it repeated, as `arrays` does."""
    shapes = array_shapes(min_dims=2, max_dims=2, max_side=12)
    return shapes.flatmap(lambda size: arrays(np.float32, (*size, *depth), elements=FLOATS))


@st.composite
def large_maps(draw, depth=()):
    """(H, W, *depth) float32: a smooth scene, with rows, columns and blocks of anything in it."""
    height, width = draw(st.integers(2, 90)), draw(st.integers(2, 120))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    values = np.empty((height, width, *depth), np.float32)
    values[:] = draw(FLOATS) if draw(st.booleans()) else 1000
    with np.errstate(all="ignore"):
        values += rng.normal(0, draw(st.sampled_from([0, 1, 1e3, 1e30])), values.shape)
    for _ in range(draw(st.integers(0, 4))):
        top, left = draw(st.integers(0, height)), draw(st.integers(0, width))
        rows, columns = draw(st.sampled_from([1, 7, 200])), draw(st.sampled_from([1, 7, 200]))
        values[top : top + rows, left : left + columns] = draw(FLOATS)
    return values


@pytest.fixture(autouse=True)
def no_warning():
    """A warning is an error: these run where the user would see it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ------------------------------------------------------------------------------------------- arrays


@given(st.one_of(maps((3,)), large_maps((3,))), st.sampled_from(["<f4", ">f4", "<f8", ">f8"]))
def test_any_point_map_is_read_as_it_is_or_refused(xyz, dtype):
    try:
        found = read_point_map("a.npy", npy(xyz.astype(dtype)))
    except BadFile as err:
        assert "\n" not in str(err)
        return
    kept = ~np.isnan(found.xyz).any(axis=2)
    assert np.array_equal(found.xyz[kept], xyz[kept])
    assert sum(found.no_value.values()) >= np.count_nonzero(np.isnan(found.xyz[..., 2]))


@given(st.one_of(maps((3,)), large_maps((3,))))
def test_what_stands_for_no_value_is_found_in_any_array(xyz):
    with np.errstate(over="ignore", invalid="ignore"):  # as its caller, read_point_map, does
        constants = missing_constants(xyz)
    masked = xyz.copy()
    counts = mask_constants(masked, constants)
    changed = np.isnan(masked).all(axis=2) & ~np.isnan(xyz).all(axis=2)
    assert sum(counts.values()) >= np.count_nonzero(changed)
    assert sum(count_missing(xyz[..., 2]).values()) <= xyz[..., 2].size


@given(st.one_of(maps((3,)), large_maps((3,))))
def test_any_array_is_a_view_or_is_none(xyz):
    problem = find_view_problem(xyz)
    assert problem is None or (problem.text and "\n" not in problem.text)
    json.dumps(fit_intrinsics(xyz), allow_nan=False)


@given(st.one_of(maps(), large_maps()), arrays(np.uint8, (8, 9, 3)), st.integers(1, 40))
def test_edges_of_any_image_and_depth_have_scores_or_none(depth, rgb, factor):
    image = Image.fromarray(rgb).resize((9 * factor, 8 * factor))
    scores = edge_scores(image, depth)
    assert scores is None or np.isfinite([*scores.turned, scores.best, *scores.shift]).all()
    for text in (describe_capture(scores), describe_dataset([scores] * 5)):
        assert text is None or "\n" not in text


@given(st.one_of(maps(), large_maps()), st.sampled_from([0.0, 300.0]))
def test_a_depth_level_is_within_half_a_step_of_what_was_measured(z, near_mm):
    levels, counts = quantize(z, near_mm, 4000.0)
    with np.errstate(invalid="ignore"):
        inside = (z > near_mm) & (z <= 4000)
    kept = levels > 0
    assert not (kept & ~inside).any()
    assert (~kept & inside & (z > STEP_MM)).sum() == 0
    assert np.abs(levels[kept] * STEP_MM - z[kept]).max(initial=0) <= STEP_MM / 2 * 1.001
    assert counts["histogram"].sum() == z.size


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_a_packed_mask_is_the_mask(mask):
    packed = read_npy("mask.npy", memoryview(encode_mask(mask)))
    assert np.array_equal(np.unpackbits(packed, axis=1, count=mask.shape[1]).astype(bool), mask)


@given(maps(), st.floats(1.0, 1e4), st.floats(1.001, 1e4), st.sampled_from(["inverse", "linear"]))
def test_depth_survives_its_normalization(z, near, ratio, scale):
    depth_range = DepthRange(near, near * ratio, scale)
    target, mask = normalize_depth(torch.from_numpy(z), depth_range)
    assert ((target >= 0) & (target <= 1)).all()
    assert (target[~mask] == 0).all()
    back = denormalize_depth(target, depth_range)
    assert torch.isfinite(back).all()
    # float32 holds the target to 6e-8; what that is in mm grows with the range and with z
    room = 1e-6 * near * ratio if scale == "linear" else 1e-6 * z[mask.numpy()] ** 2 / near
    error = np.abs(back[mask].numpy() - z[mask.numpy()])
    assert (error <= room + 1e-5 * z[mask.numpy()] + (1 if scale == "linear" else 0)).all()


# --------------------------------------------------------------------------------------- statistics


def sample_stats(z, stem):
    levels, counts = quantize(z, 0.0, 4000.0)
    counts["flying"] = count_flying(z, levels)
    return depth_stats(counts, STEP_MM, stem) if (levels > 0).any() else None


@given(st.lists(large_maps(), min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_statistics_are_the_same_however_captures_are_cut_into_shards(scenes, random):
    samples = [sample_stats(z, f"s{number}") for number, z in enumerate(scenes)]
    samples = [one for one in samples if one]
    if not samples:
        return
    together = merge_stats(samples)
    random.shuffle(samples)
    cuts = sorted(random.randrange(len(samples) + 1) for _ in range(3))
    parts = [samples[a:b] for a, b in zip([0, *cuts], [*cuts, len(samples)]) if a < b]
    in_parts = merge_stats([json.loads(json.dumps(merge_stats(part))) for part in parts])
    one_by_one = reduce(lambda first, second: merge_stats([first, second]), samples)
    assert in_parts == one_by_one == together
    found = statistics(in_parts, STEP_MM)
    assert found == statistics(together, STEP_MM)
    assert found["min_mm"] <= found["mean_mm"] * (1 + 1e-9)
    assert found["mean_mm"] <= found["max_mm"] * (1 + 1e-9)
    assert found["std_mm"] >= 0
    left_out = sum(end["pixels"] for end in found.get("left_out", {}).values())
    assert found["valid_pixels"] + left_out == together["valid"]


@given(large_maps(), st.integers(1, 50), st.integers(1, 50))
def test_a_resized_map_has_no_value_that_was_not_there(z, height, width):
    assert np.isin(resize_nearest(z, (height, width)), z[~np.isnan(z)]).all() or np.isnan(z).any()


# ----------------------------------------------------------------------------------- names, folders

NAMES = st.one_of(
    st.text("ab._- é\u202e\n", min_size=1, max_size=4),
    st.sampled_from(
        [
            "rgb",
            "xyz",
            "truth",
            "a_grooves",
            ".a",
            "a.b",
            "a_rgb",
            "a_xyz",
            "points",
            "depth",
            "a_depth",
            "1305031102.1",
            "1305031102.11",
        ]
    ),
)
SUFFIXES = st.sampled_from(
    [".png", ".PNG", ".jpg", ".npy", ".tif", ".txt", ".yaml", "_grooves.png", ""]
)
FILES = st.lists(st.tuples(st.lists(NAMES, max_size=2), NAMES, SUFFIXES), min_size=1, max_size=8)


@given(FILES)
def test_each_file_of_any_folder_is_in_one_pair_or_named_once(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("names")
    for folders, name, suffix in files:
        path = root.joinpath(*folders, name + suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # the name is taken
    try:
        pairs, rejects = find_pairs(root)
    except BadFile as err:
        assert "\n" not in str(err)
        return
    used = [path for pair in pairs for path in dict.fromkeys(pair.files.values())]
    assert len(used) == len(set(used))
    assert len({pair.stem for pair in pairs}) == len(pairs)
    assert not {reject.path for reject in rejects} & set(used)
    assert all(pair.stem.isprintable() for pair in pairs)


@given(st.text(st.sampled_from("ab,\t\n\"'# \r\x00\u2028é"), max_size=60))
def test_any_text_of_groups_gives_each_capture_a_group_or_is_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("groups") / "groups.csv"
    path.write_text(text, newline="")
    try:
        groups = read_groups(path, ["a", "x/b"], optional=["c"])
    except ValueError as err:
        assert all(line.startswith(str(path)) for line in str(err).splitlines())
        return
    assert {"a", "x/b"} <= groups.keys() <= {"a", "x/b", "c"}
    assert all(groups.values())


# ----------------------------------------------------------------------------------------- settings

GROUPS = sorted({type(one) for one in CHANGED}, key=lambda group: group.__name__)
WORDS = st.one_of(
    st.sampled_from(
        ["", "nan", "inf", "-inf", "-1", "0", "1e400", "1_0", "\u0661", "0x10", "none", "auto",
         "[]",
         "28x42", "0x0", "9" * 400, "1,2,,3", "-", "--", "~nobody/x", "a\0b",
         "\ud800", "é"]
    ),
    st.text(max_size=12),
    st.floats().map(repr),
    st.integers().map(str),
)  # fmt: skip


def flags_of(group):
    return [f for f in group.__dataclass_fields__.values() if not f.metadata]


@pytest.mark.parametrize("group", filter(flags_of, GROUPS), ids=lambda group: group.__name__)
def test_any_words_after_flags_are_settings_or_lines(group, tmp_path):
    fields = flags_of(group)
    start = [w for f in group.__dataclass_fields__.values() if f.metadata.get("positional")
             for w in ["a"]]  # fmt: skip

    @given(st.dictionaries(st.sampled_from([f.name for f in fields]), WORDS, max_size=4))
    def search(words):
        argv = [*start, *(f"{flag_name(name)}={word}" for name, word in words.items())]
        try:
            (made,) = parse("x", group, argv=argv)
        except (SettingsError, OSError) as err:  # a name too long for a file: one line as well
            assert str(err)
            return
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(as_dict(made)))
        (again,) = parse("x", group, argv=["--config", str(path)])
        assert repr(again) == repr(made)  # NaN is not equal to itself

    search()
