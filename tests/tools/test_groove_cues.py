"""The measure of what an image shows of groove depth, on images of which that is known."""

import json

import numpy as np
import pytest
from PIL import Image

from tools import groove_cues

GROOVES, WIDTH_PX, PITCH_PX = 10, 12, 40


def write_folder(folder, seed, shown):
    """Write 3 captures of straight grooves of random depths.

    shown  whether a groove is darker the deeper it is, otherwise all are alike
    """
    rng = np.random.default_rng(seed)
    for name in ("images", "depth", "truth"):
        (folder / name).mkdir(parents=True)
    (folder / "tires.json").write_text(json.dumps({"settings": {"pairs": 3}}))
    for i in range(3):
        depths = rng.uniform(1, 9, GROOVES)
        labels = np.zeros((60, GROOVES * PITCH_PX), np.uint16)
        log_grey = np.full(labels.shape, np.log(120.0))
        for g in range(GROOVES):
            columns = slice(g * PITCH_PX + 14, g * PITCH_PX + 14 + WIDTH_PX)
            labels[10:50, columns] = g + 1
            log_grey[10:50, columns] -= 0.08 * (depths[g] if shown else 4.0)
        grey = np.exp(log_grey) + rng.normal(0, 1.0, labels.shape)
        image = np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)
        Image.fromarray(image).save(folder / "images" / f"{i}_color.png")
        np.save(folder / "depth" / f"{i}_rawDepth.npy", np.full((*labels.shape, 3), 1200.0))
        np.savez(
            folder / "truth" / f"{i}_truth.npz",
            groove=labels,
            tire=np.ones(labels.shape, np.uint8),
            K=np.diag([1867.0, 1867.0, 1.0]),
            groove_id=np.arange(1, GROOVES + 1),
            groove_depth_mm=depths,
        )


@pytest.mark.parametrize("shown", [True, False])
def test_depth_is_read_where_the_image_shows_it_and_not_where_it_does_not(shown, tmp_path, capsys):
    write_folder(tmp_path / "fit", 0, shown)
    write_folder(tmp_path / "test", 1, shown)
    groove_cues.main([str(tmp_path / "fit"), str(tmp_path / "test")])
    row = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    num_fit, num_test, mean, mae_of_mean, mae_of_widths, mae, r = map(float, row)
    assert num_fit == num_test == 3 * GROOVES
    assert 4 < mean < 6
    assert mae_of_widths == pytest.approx(mae_of_mean, abs=0.02)
    assert (mae < 0.25 * mae_of_mean) == shown
    assert (r > 0.95) == shown


def test_a_folder_without_captures_of_tires_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"no tires\.json"):
        groove_cues.main([str(tmp_path), str(tmp_path)])
