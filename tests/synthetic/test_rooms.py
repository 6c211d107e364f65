"""Built-in scenes: every depth is where the ray first meets a surface, nothing depends on order or
workers."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))

import make_rooms  # noqa: E402

from depthdist.synthetic.raytracing.tire_shape import distance  # noqa: E402
from depthdist.synthetic.rooms import raycast as shapes  # noqa: E402
from depthdist.synthetic.rooms import render as rooms  # noqa: E402
from depthdist.synthetic.rooms import scene as draw

SETTINGS = rooms.Settings(scenes=8, size=(42, 70), seed=3)
SMALL = ["--scenes", "6", "--size", "28x42", "--seed", "2"]


def world_of(index, size=(42, 70)):
    return draw.scene(np.random.default_rng(index), size)


def inside(kind, half, p):
    """How far inside a thing points (N, 3) of its own frame are: below 1 inside, 1 on its surface,
    above outside."""
    if kind == shapes.BALL:
        return np.sqrt((p**2 / np.asarray(half) ** 2).sum(-1))
    if kind == shapes.CYLINDER:
        return np.maximum(np.hypot(p[:, 0], p[:, 1]) / half[0], abs(p[:, 2]) / half[2])
    return (abs(p) / half).max(-1)


def to(frame, points):
    return points @ frame[:, :3].T + frame[:, 3]


@pytest.mark.parametrize("index", range(8))
def test_every_hit_lies_on_its_thing_and_nothing_stands_before_it(index):
    """Against the implicit surfaces in NumPy: no march, no closed form."""
    world, _, k = world_of(index)
    hits = shapes.cast(world, k, 42, 70)
    camera = world.camera
    lens = -camera[:, :3].T @ camera[:, 3]
    rng, num_things = np.random.default_rng(0), len(world.kind)
    for v, u in zip(rng.integers(0, 42, 60), rng.integers(0, 70, 60)):
        d = camera[:, :3].T @ [(u + 0.5 - k[0, 2]) / k[0, 0], (v + 0.5 - k[1, 2]) / k[1, 1], 1.0]
        z, item = hits.z[v, u], hits.item[v, u]
        assert item >= 0 and np.isfinite(z)
        if item < num_things:
            on = inside(
                world.kind[item], world.half[item], to(world.to_thing[item], (lens + z * d)[None])
            )
            assert on[0] == pytest.approx(1.0, abs=1e-9)
        else:
            tire = world.tires[item - num_things]
            x, y, axial = to(world.to_tire[item - num_things], (lens + z * d)[None])[0]
            assert abs(distance(tire, world.grooves, x, y, axial)) < 0.05
        before = lens + np.linspace(0.0, 0.999, 400)[:, None] * z * d
        for s in range(num_things):
            depth = inside(world.kind[s], world.half[s], to(world.to_thing[s], before))
            assert (
                (depth <= 1 + 1e-9).all()
                if world.kind[s] == shapes.ROOM
                else (depth >= 1 - 1e-9).all()
            )
        for tire, frame in zip(world.tires, world.to_tire):
            p = to(frame, before)
            r = np.hypot(p[:, 0], p[:, 1])
            near = (r < tire["radius_mm"] + 1) & (abs(p[:, 2]) < tire["half_mm"] + 1)
            assert all(distance(tire, world.grooves, *q) > -0.05 for q in p[near])


def test_normals_face_the_lens_and_are_the_surfaces_own():
    """Against differences of neighbouring points, in the middle of faces."""
    world, _, k = world_of(1, (84, 140))
    hits = shapes.cast(world, k, 84, 140)
    lens = -world.camera[:, :3].T @ world.camera[:, 3]
    assert ((hits.normal * (hits.place - lens)).sum(-1) < 0).all()
    across = np.cross(
        hits.place[1:-1, 2:] - hits.place[1:-1, :-2], hits.place[2:, 1:-1] - hits.place[:-2, 1:-1]
    )
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    same = np.ones(across.shape[:2], bool)
    for dv, du in ((0, 1), (2, 1), (1, 0), (1, 2)):
        same &= hits.item[dv : dv + 82, du : du + 138] == hits.item[1:-1, 1:-1]
    same &= hits.item[1:-1, 1:-1] < len(world.kind)
    agree = abs((across * hits.normal[1:-1, 1:-1]).sum(-1))[same]
    assert same.mean() > 0.3 and np.median(agree) > 0.999 and (agree > 0.95).mean() > 0.9


def test_what_the_lamp_does_not_reach_is_what_something_hides():
    world, _, k = world_of(2)
    hits = shapes.cast(world, k, 42, 70)
    alone = shapes.cast(
        world._replace(
            kind=world.kind[-1:],
            half=world.half[-1:],
            to_thing=world.to_thing[-1:],
            tires=world.tires[:0],
            to_tire=world.to_tire[:0],
        ),
        k,
        42,
        70,
    )
    assert alone.lit.all(), "an empty room has no shadow"
    bare = (hits.item == len(world.kind) - 1) & np.isclose(hits.z, alone.z)
    assert 0 < (bare & ~hits.lit).sum() < bare.sum()


def test_a_scene_follows_from_seed_and_number_alone_and_is_exact_everywhere():
    first = [rooms.render(SETTINGS, i) for i in range(8)]
    again = rooms.render(replace(SETTINGS, scenes=100), 5)
    assert (again.rgb == first[5].rgb).all() and (again.xyz == first[5].xyz).all()
    assert not (rooms.render(replace(SETTINGS, seed=4), 5).rgb == first[5].rgb).all()
    for scene in first:
        z = scene.xyz[..., 2]
        assert (
            scene.rgb.shape == (42, 70, 3)
            and np.isfinite(scene.xyz).all()
            and z.min() > 50
            and scene.rgb.std() > 5
        )
    assert any(scene.groove.any() for scene in first) and not all(
        scene.groove.any() for scene in first
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("rooms") / "new"
    make_rooms.main([str(out), *SMALL, "--workers", "1"])
    return out


def digests(out):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}


def test_the_command_writes_pairs_that_sharding_takes_whatever_the_workers(
    made, tmp_path, monkeypatch
):
    from depthdist.captures.layouts import find_pairs

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tools'}")
    make_rooms.main([str(tmp_path / "two"), *SMALL, "--workers", "2"])
    assert digests(tmp_path / "two") == digests(made) and len(digests(made)) == 6 * 2 + 1
    assert len(find_pairs(str(made))[0]) == 6
    scene = rooms.render(rooms.Settings(6, (28, 42), 2), 4)
    assert (np.asarray(Image.open(made / f"{scene.stem}.png")) == scene.rgb).all() and (
        np.load(made / f"{scene.stem}.npy") == scene.xyz
    ).all()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_workers_end_with_a_killed_command(name, tmp_path):
    command = subprocess.Popen(
        [
            sys.executable,
            ROOT / "tools/make_rooms.py",
            tmp_path / "out",
            "--scenes",
            "5000",
            "--size",
            "28x42",
            "--workers",
            "2",
        ]
    )
    while not list(tmp_path.glob("out/*.npy")):
        assert command.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(command.pid).children(recursive=True)
    command.send_signal(signal.Signals[name])
    command.wait()
    assert len(workers) >= 2 and psutil.wait_procs(workers, timeout=10)[1] == []


def test_a_second_run_makes_what_is_missing_and_more_where_more_is_asked_for(made, capsys):
    before = digests(made)
    (made / "room-2-000003.npy").unlink()
    make_rooms.main([str(made), *SMALL, "--workers", "1"])
    assert digests(made) == before and "1 made" in capsys.readouterr().out
    make_rooms.main([str(made), "--scenes", "7", *SMALL[2:], "--workers", "1"])
    assert {n: d for n, d in digests(made).items() if n in before and n != "rooms.json"} == {
        n: d for n, d in before.items() if n != "rooms.json"
    }
    assert json.loads((made / "rooms.json").read_text())["scenes"] == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "9"], "other settings"),
        (["--size", "42x42"], "other settings"),
        (["--scenes", "0"], "--scenes is 0"),
        (["--size", "8x8"], "--size is 8x8"),
    ],
)
def test_what_cannot_work_is_one_line(made, words, said):
    with pytest.raises(ValueError, match=said):
        make_rooms.main([str(made), *SMALL, *words])


@pytest.mark.parametrize("text", ["", "[1]", "7"])
def test_settings_that_cannot_be_read_are_one_line(tmp_path, text):
    (tmp_path / "rooms.json").write_text(text)
    with pytest.raises(ValueError, match="rooms.json: not what this command writes"):
        make_rooms.main([str(tmp_path), *SMALL])


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        make_rooms.main([str(tmp_path), *SMALL])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
