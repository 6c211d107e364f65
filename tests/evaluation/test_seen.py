"""Images that a run learned from are named, and among its scores only where that is asked for."""

import json
import shutil

import pytest
from helpers.captures import write_capture
from helpers.commands import command
from helpers.evaluation import evaluate
from helpers.runs import make_shards

from depthdist.evaluation.comparison import compare_runs
from depthdist.evaluation.seen import describe_seen
from depthdist.shards.index import read_index

pytestmark = pytest.mark.usefixtures("in_this_process")
FIT = "scores of images that were learned from say how well they fit"


@pytest.fixture(scope="module")
def again(data, tmp_path_factory):
    """The same captures, sharded with another seed: 2 of 3 validation images were in train."""
    folder = tmp_path_factory.mktemp("again")
    shutil.copytree(data.with_name("raw"), folder / "raw")
    return make_shards(folder, seed=7)


def stems(data, split):
    return [ref.stem for ref in read_index(data).samples(split)]


@pytest.fixture(scope="module")
def seen(data, again):
    """Of `again`'s validation images those that the run learned from, and the others."""
    learned = [stem for stem in stems(again, "val") if stem in stems(data, "train")]
    new = [stem for stem in stems(again, "val") if stem not in learned]
    assert learned and new
    return learned, new


def content(run):
    return json.loads((run / "evaluation.json").read_text())


def of(run, data, *words):
    """What the command prints of the scores of a dataset."""
    return evaluate(run, "--data", data, "--no-details", *words)[1]


def line_of(out, words):
    (line,) = [line for line in out.splitlines() if words in line]
    return line


def copy_of(run, folder, **facts):
    """The run in another folder, without its record of images and with other facts."""
    shutil.copytree(run, folder)
    (folder / "seen.npy").unlink()
    record = json.loads((folder / "run.json").read_text())
    record["derived"] |= facts
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_images_that_were_learned_from_are_named_and_not_scored(run, again, seen):
    learned, new = seen
    line = line_of(of(run, again), "learned from")
    assert line == (
        f"WARNING   the run learned from {len(learned)} of 3 images of val: they are left out of"
        f" the scores ({', '.join(learned)}); --include-seen scores them as well"
    )
    assert all(images["keys"] == new for images in content(run)["images"].values())


def test_the_file_says_how_many_were_left_out_and_by_what_they_are_known(run, again, seen):
    learned, _ = seen
    of(run, again)
    assert content(run)["seen"] == {
        "known_by": "source files",
        "images": 3,
        "trained_on": len(learned),
        "left_out": len(learned),
        "chosen_by": 0,
        "names": learned,
        "include_seen": False,
    }


def test_include_seen_scores_them_and_says_so(run, again, seen):
    learned, _ = seen
    line = line_of(of(run, again, "--include-seen"), "learned from")
    assert line.startswith(
        f"WARNING   the run learned from {len(learned)} of 3 images of val: they are among the"
        f" scores, as --include-seen asks ({', '.join(learned)}); {FIT}"
    )
    found = content(run)
    assert found["images"]["untrained"]["keys"] == stems(again, "val")
    assert found["seen"]["include_seen"] and found["seen"]["left_out"] == 0


def test_the_runs_own_validation_is_scored_whole_and_without_a_word(run, data):
    out = of(run, data)
    assert "learned from" not in out and content(run)["seen"]["trained_on"] == 0
    assert content(run)["images"]["untrained"]["keys"] == stems(data, "val")


def test_train_is_scored_whole_and_said_to_be_no_measure(run, data):
    line = line_of(of(run, data, "--split", "train"), "learned from")
    assert line.startswith(f"the run learned from 11 of 11 images of train; {FIT}")


def sharded_as(data, folder, groups):
    """The same captures, each in the split that its old one is mapped to."""
    shutil.copytree(data.with_name("raw"), folder / "raw")
    lines = [
        f"{stem},{groups[split]}\n" for split in ("train", "val") for stem in stems(data, split)
    ]
    (folder / "groups.csv").write_text("".join(lines))
    return make_shards(folder, split="file", groups=str(folder / "groups.csv"))


def test_where_nothing_new_is_left_one_line_says_how_to_go_on(run, data, tmp_path):
    known = sharded_as(data, tmp_path, {"train": "val", "val": "train"})
    (line,) = command("launch/evaluate.py", "--run", run, "--data", known).errors
    names = ", ".join(stems(data, "train")[:5])
    assert f"learned from all 11 images of val ({names}, ...)" in line
    assert "--include-seen" in line and "--data" in line


def test_a_test_image_that_chose_the_best_epoch_is_named_and_scored(run, data, tmp_path):
    both = sharded_as(data, tmp_path, {"train": "train", "val": "test"})
    line = line_of(of(run, both, "--split", "test"), "chose the run's best epoch")
    assert line.startswith("note: 3 of 3 images of test ") and stems(data, "val")[0] in line
    assert content(run)["seen"]["chosen_by"] == 3 and content(run)["seen"]["left_out"] == 0


# ------------------------------------------------------------------------ runs without their record


def test_an_older_run_on_unchanged_data_knows_what_it_learned_from(run, again, seen, tmp_path):
    old = copy_of(run, tmp_path / "old")
    assert "are left out of the scores" in of(old, again)
    assert content(old)["images"]["untrained"]["keys"] == seen[1]


@pytest.mark.parametrize("facts", [{"data": ["/nowhere"]}, {"data_sha256": "0" * 64}])
def test_an_older_run_whose_data_is_gone_says_that_nobody_can_know(run, again, tmp_path, facts):
    old = copy_of(run, tmp_path / "old", **facts)
    line = line_of(of(old, again), "cannot be known")
    assert line.startswith("WARNING   ") and str(old) in line
    assert content(old)["seen"]["known_by"] is None
    assert "is not known" in describe_seen(content(old))


def test_an_older_run_on_its_own_data_at_another_place_is_scored_without_a_word(
    run, data, tmp_path
):
    old = copy_of(run, tmp_path / "old", data=["/nowhere"])
    warnings = [line for line in of(old, data).splitlines() if "WARNING" in line]
    assert all("no better than a constant depth" in line for line in warnings), warnings


# -------------------------------------------------------------------------- comparison and reports


def test_runs_are_compared_on_images_that_are_new_to_both(run, again, seen, tmp_path):
    learned, new = seen
    other = copy_of(run, tmp_path / "other", data=["/nowhere"])
    words = ["--compare", run, other, "--data", again, "--no-details"]
    out = command("launch/evaluate.py", *words).out
    assert line_of(out, "that both were measured on") == (
        f"{len(new)} images that both were measured on; left out are {len(learned)} that A learned"
        " from, and 0 that B learned from"
    )


def test_runs_without_a_common_image_are_not_compared(run, again):
    of(run, again)
    a, b = content(run), content(run)
    for images in b["images"].values():
        images["samples"] = [number + 100 for number in images["samples"]]
    with pytest.raises(ValueError, match="no image was measured for both"):
        compare_runs(a, b, ["a", "b"])


def test_reports_say_which_images_were_left_out(run, again, seen, tmp_path):
    of(run, again)
    page = tmp_path / "page.html"
    assert command("tools/report.py", "run", run, "--out", page).code == 0
    assert (
        f"The run learned from {len(seen[0])} of 3 images of val: they are left out of the scores"
        in (page.read_text())
    )


def test_many_names_are_five_and_dots():
    record = {"known_by": "source files", "images": 9, "trained_on": 6, "left_out": 6}
    evaluation = {"split": "val", "seen": {**record, "names": list("abcde"), "include_seen": False}}
    assert "(a, b, c, d, e, ...)" in describe_seen(evaluation)


# ---------------------------------------------------------------------------- other images


def test_other_captures_of_the_same_names_are_new(run, data, tmp_path):
    """A name says nothing: the files do."""
    for i, stem in enumerate(stems(data, "train")[:4]):
        name = stem.removesuffix("_color")
        write_capture(
            tmp_path / f"raw/images/{name}_color.png",
            tmp_path / f"raw/depth/{name}_rawDepth.npy",
            50 + i,
        )
    assert "learned from" not in of(run, make_shards(tmp_path))
