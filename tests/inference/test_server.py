"""launch/serve.py: the page in a real browser, its downloads, and its answers to bad input."""

import io
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import trimesh
from helpers.browser import CHROMIUM, Browser
from helpers.captures import HOSTILE, capture
from helpers.commands import command
from helpers.page_server import ask, drop, png, serving
from PIL import Image

WORDS = [
    "--max-mb",
    "0.2",
    "--max-megapixels",
    "0.5",
    "--keep",
    "3",
    "--waiting",
    "2",
]


@pytest.fixture(scope="module")
def server(run):
    """The URL of a server that runs as a person starts it."""
    with serving(run, *WORDS) as url:
        yield url


def test_downloads_are_what_predict_writes(server, run, tmp_path):
    rgb = capture(5, size=(30, 40))[0]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert (
        command(
            "launch/predict.py",
            tmp_path / "a.png",
            "--run",
            run,
            "--out",
            tmp_path / "out",
            "--save",
            "npy,png,ply",
            "--fov",
            70,
        ).code
        == 0
    )
    status, facts = ask(f"{server}/depth?name=a.png", png(rgb))
    assert status == 200
    assert (facts["height"], facts["width"], facts["name"]) == (30, 40, "a.png")
    depth = np.load(tmp_path / "out/a_depth.npy")
    assert facts["nearest_mm"] == pytest.approx(depth.min())
    assert facts["farthest_mm"] == pytest.approx(depth.max())
    found = {
        kind: ask(f"{server}/depth/{facts['id']}.{kind}")[1]
        for kind in ("f32", "npy", "png", "colour.png", "jpg")
    }
    assert np.abs(np.frombuffer(found["f32"], "<f4").reshape(30, 40) - depth).max() < 0.01
    assert np.abs(np.load(io.BytesIO(found["npy"])) - depth).max() < 0.01
    assert (
        np.abs(
            np.asarray(Image.open(io.BytesIO(found["png"]))).astype(int)
            - np.asarray(Image.open(tmp_path / "out/a_depth_0.1mm.png"))
        ).max()
        <= 1
    )
    assert (
        Image.open(io.BytesIO(found["jpg"])).size
        == Image.open(io.BytesIO(found["colour.png"])).size
        == (40, 30)
    )
    cloud = trimesh.load(
        io.BytesIO(ask(f"{server}/depth/{facts['id']}.ply?fov=70")[1]), file_type="ply"
    )
    assert np.abs(cloud.vertices - trimesh.load(tmp_path / "out/a_cloud.ply").vertices).max() < 0.01


@pytest.mark.parametrize(
    ("path", "content", "status", "text"),
    [
        ("depth?name=notes.txt", b"not an image", 400, "cannot be read as an image"),
        ("depth", b"", 400, "cannot be read as an image"),
        ("depth", b"x" * 300_000, 413, "larger than 0.2 MB (--max-mb)"),
        ("depth/nothing.npy", None, 404, "this result is gone: the last 3 are kept"),
        ("depth/nothing.exe", None, 404, "no .exe here"),
        ("depth/..%2F..%2Fetc%2Fpasswd", None, 404, "here"),
        ("no-such-page", None, 404, "Not Found"),
    ],
)
def test_a_bad_request_is_one_line_and_the_server_keeps_running(
    server, path, content, status, text
):
    found, body = ask(f"{server}/{path}", content)
    assert found == status, (found, body)
    assert text in body["error"], (found, body)
    assert "\n" not in body["error"], (found, body)
    assert ask(f"{server}/depth", png(capture(1)[0]))[0] == 200


def test_too_many_pixels_are_rejected_before_they_are_decoded(server):
    status, body = ask(f"{server}/depth?name=large.png", png(np.zeros((900, 1000, 3), np.uint8)))
    assert status == 400
    assert "1000 x 900" in body["error"]
    assert "--max-megapixels" in body["error"]


def test_old_results_are_deleted(server):
    first, *_ = [ask(f"{server}/depth", png(capture(i)[0]))[1]["id"] for i in range(4)]
    assert ask(f"{server}/depth/{first}.npy")[0] == 404


def test_many_requests_at_once_are_answered_or_rejected(server):
    large = png(np.zeros((600, 800, 3), np.uint8))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(f"{server}/depth", large), range(16)))
    assert {status for status, _ in answers} == {200, 503}
    assert all(
        "2 images are waiting already" in body["error"] for status, body in answers if status == 503
    )


@pytest.mark.parametrize(
    ("header", "value"),
    [("Origin", "http://evil.example"), ("Origin", "null"), ("Host", "evil.example")],
)
def test_requests_of_other_pages_are_rejected(server, header, value):
    request = urllib.request.Request(
        f"{server}/depth", data=png(capture(1)[0]), headers={header: value}
    )
    with pytest.raises(urllib.error.HTTPError) as err:
        urllib.request.urlopen(request, timeout=60)
    assert err.value.code == 403


@pytest.mark.parametrize("kind", ["ICO", "EPS", "GIF"])
def test_kinds_that_run_programs_or_hide_their_size_are_not_opened(server, kind):
    file = io.BytesIO()
    Image.fromarray(capture(1)[0]).save(file, kind)
    status, body = ask(f"{server}/depth?name=a%0Ab.{kind}", file.getvalue())
    assert status == 400
    assert "cannot be read as an image" in body["error"]
    assert "\n" not in body["error"]


@pytest.mark.skipif(
    not HOSTILE.exists(), reason=f"the unusual images are missing: {HOSTILE}/images"
)
def test_no_unusual_image_stops_the_server(server):
    for path in sorted((HOSTILE / "images").iterdir()):
        status, body = ask(
            f"{server}/depth?name={urllib.request.quote(path.name)}", path.read_bytes()
        )
        assert status == 200 or (status in (400, 413) and "\n" not in body["error"]), (
            path,
            status,
            body,
        )
    assert ask(f"{server}/depth", png(capture(1)[0]))[0] == 200


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--fov", "0"], "--fov is 0"),
        (["--keep", "0"], "--keep is 0: expected above 0"),
        (["--max-mb", "inf"], "--max-mb is inf: expected above 0"),
        (["--host", "203.0.113.9"], "cannot listen there"),
        (["no-such-run"], "unexpected argument"),
    ],
)
def test_settings_that_cannot_work_are_one_line(run, words, text):
    done = command("launch/serve.py", run, *words)
    assert done.code == 2, done
    assert len(done.errors) == 1, done
    assert text in done.errors[0], done


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_person_drops_an_image_reads_depth_measures_and_turns_it(server, tmp_path):
    rgb = np.kron(capture(5, size=(30, 40))[0], np.ones((4, 4, 1), np.uint8))  # (120, 160)
    with Browser() as page:
        page.open(server)
        assert page.run("document.title") == "depthdist"
        assert page.run("document.querySelector('#result').hidden")
        assert "Files of 0.2 MB and 0.5 megapixels at most" in page.run(
            "document.querySelector('#told').textContent"
        )
        drop(page, b"no image", "bad.png")
        page.until("document.querySelector('#told').className === 'bad'")
        assert "cannot be read as an image" in page.run(
            "document.querySelector('#told').textContent"
        )
        drop(page, png(rgb), "pile.png")
        page.until("!document.querySelector('#result').hidden")
        assert "pile.png: 160 x 120" in page.run("document.querySelector('#told').textContent")
        depth = np.array(page.run("Array.from(now.depth)")).reshape(120, 160)
        box = page.run(
            "(({left, top, width, height}) => [left, top, width,"
            " height])(document.querySelector('#flat').getBoundingClientRect())"
        )

        def place(column, row):
            return box[0] + (column + 0.5) / 160 * box[2], box[1] + (row + 0.5) / 120 * box[3]

        page.move(*place(100, 50))
        shown = page.run("document.querySelector('#mm').textContent")
        z = depth[50, 100]
        assert shown.startswith(f"{z:.0f} mm" if z >= 1000 else f"{z:.1f} mm"), (shown, z)
        assert "column 100, row 50" in shown, (shown, z)
        page.run(
            "document.querySelector('#fov').value = 90;"
            " document.querySelector('#fov').dispatchEvent(new Event('input'))"
        )
        page.click(*place(20, 30))
        page.click(*place(140, 90))
        a, b = (
            np.array([(u + 0.5 - 80) / 80, (v + 0.5 - 60) / 80, 1.0]) * depth[v, u]
            for u, v in ((20, 30), (140, 90))
        )
        measured = page.run("document.querySelector('#measured').textContent")
        apart, deeper = np.linalg.norm(a - b), abs(a[2] - b[2])
        assert (
            f"distance {apart:.0f} mm" in measured
            if apart >= 1000
            else f"distance {apart:.1f} mm" in measured
        ), (measured, apart)
        assert f"depth difference {deeper:.1f} mm" in measured
        assert "90 degrees" in measured
        page.screenshot(tmp_path / "flat.png")
        page.run("document.querySelector('[data-view=space]').click()")
        assert page.run("drawn.count") == 160 * 120
        lit = (
            "(() => { spin(); const p = new Uint8Array(4 * gl.drawingBufferWidth *"
            " gl.drawingBufferHeight); gl.readPixels(0, 0, gl.drawingBufferWidth,"
            " gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, p); let n = 0; for (let i = 0; i <"
            " p.length; i += 4) n += p[i] + p[i + 1] + p[i + 2] > 60; return n / p.length * 4; })()"
        )
        assert page.run(lit) > 0.05, "points are seen"
        before = page.run("drawn.yaw")
        x, y = place(80, 60)
        page.move(x, y, "mousePressed", button="left", buttons=1, clickCount=1)
        page.move(x + 60, y, buttons=1, button="left")
        page.move(x + 60, y, "mouseReleased", button="left")
        assert page.run("drawn.yaw") != before
        page.screenshot(tmp_path / "space.png")
        assert page.run("document.querySelector('#npy').href").endswith(".npy")
        assert "fov=90" in page.run("document.querySelector('#ply').href")
        assert not page.errors, page.errors
