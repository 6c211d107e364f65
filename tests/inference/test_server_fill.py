"""The page fills the holes of points, and a slider leaves out what is less sure."""

import io
import shutil

import numpy as np
import pytest
from helpers.browser import CHROMIUM, Browser
from helpers.captures import capture
from helpers.completion_stages import write_completion
from helpers.page_server import ask, drop, png, serving

import depthdist

SIZE = (60, 80)


@pytest.fixture(scope="module")
def staged(run, tmp_path_factory):
    """The run with a completion stage of random weights."""
    copy = shutil.copytree(run, tmp_path_factory.mktemp("page") / "run")
    write_completion(copy, SIZE, gain=0.2)
    return copy


@pytest.fixture(scope="module")
def server(staged):
    with serving(staged, "--max-mb", "0.2") as url:
        yield url


RGB, XYZ = capture(5, size=SIZE)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def floats(url):
    return np.frombuffer(ask(url)[1], "<f4").reshape(SIZE)


@pytest.fixture(scope="module")
def image(server):
    """What the server says of an image."""
    status, facts = ask(f"{server}/depth?name=a.png", png(RGB))
    assert status == 200 and facts["measured"] is None and facts["has_sigma"]
    return facts


@pytest.mark.parametrize("points", [XYZ, XYZ[..., 2], XYZ[..., 2].astype(">f8")])
def test_points_are_filled_as_python_fills_them(server, staged, image, points):
    status, facts = ask(f"{server}/fill/{image['id']}?name=a.npy", npy(points))
    assert status == 200, facts
    expected = depthdist.load(staged).fill(RGB, points)
    measured = np.isfinite(XYZ[..., 2])
    assert facts["measured"] == pytest.approx(measured.mean()) and facts["name"] == "a.png"
    depth, sigma = (floats(f"{server}/depth/{facts['id']}.{kind}") for kind in ("f32", "sigma.f32"))
    assert np.array_equal(depth, expected.depth_mm) and np.array_equal(sigma, expected.sigma_mm)
    assert np.array_equal(depth[measured], XYZ[measured][:, 2].astype(np.float32))
    _, content = ask(f"{server}/depth/{facts['id']}.npy")
    assert np.array_equal(np.load(io.BytesIO(content)), depth)


def test_a_prediction_says_how_sure_it_is(server, staged, image):
    sigma = floats(f"{server}/depth/{image['id']}.sigma.f32")
    expected = depthdist.load(staged).predict(RGB, sigma=True).sigma_mm
    assert np.array_equal(sigma, expected) and (sigma > 0).all()


HEADER = npy(np.zeros((2, 2), np.float32))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nothing", "cannot be read as a .npy file"),
        (b"", "cannot be read as a .npy file"),
        (npy(np.zeros((3, 4))), "is float64 of shape (3, 4); expected numbers of shape (60, 80)"),
        (npy(np.zeros(SIZE)), "holds no measured pixel"),
        (npy(np.full(SIZE, 1.5)), "looks like metres"),
        (npy(np.full(SIZE, "a")), "is <U1 of shape (60, 80); expected numbers"),
        (npy(np.full(SIZE, 1500.0))[:-8], "bytes behind its header, not those of (60, 80)"),
        (npy(np.array([{}] * 3, object)), "is object of shape (3,); expected numbers"),
        (
            HEADER.replace(b"(2, 2), }", b"(99999999999,)}"),
            "is float32 of shape (99999999999,); expected numbers",
        ),
    ],
)
def test_other_files_are_one_line(server, image, content, said):
    status, answer = ask(f"{server}/fill/{image['id']}?name=b.npy", content)
    assert status == 400 and said in answer["error"], answer
    assert answer["error"].startswith("b.npy: ")


def test_points_of_an_image_that_is_gone_are_one_line(server):
    status, answer = ask(f"{server}/fill/none", npy(XYZ))
    assert status == 404 and "this result is gone" in answer["error"]


def test_without_a_stage_filled_pixels_are_told_from_measured_ones(run):
    with serving(run) as url:
        _, facts = ask(f"{url}/depth", png(RGB))
        assert not facts["has_sigma"]
        status, answer = ask(f"{url}/depth/{facts['id']}.sigma.f32")
        assert status == 404 and "no completion stage" in answer["error"]
        _, facts = ask(f"{url}/fill/{facts['id']}", npy(XYZ))
        sigma = floats(f"{url}/depth/{facts['id']}.sigma.f32")
        assert np.array_equal(sigma == 0, np.isfinite(XYZ[..., 2])) and set(np.unique(sigma)) == {
            0,
            1,
        }


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_person_drops_points_and_moves_the_slider(server, tmp_path):
    def told():
        return page.run("document.querySelector('#told').textContent")

    with Browser() as page:
        page.open(server)
        drop(page, npy(XYZ), "a.npy")
        page.until("document.querySelector('#told').className === 'bad'")
        assert "drop the image first" in told()
        drop(page, png(RGB), "a.png")
        page.until("now !== null && now.measured === null")
        assert not page.run("document.querySelector('#sure').hidden")
        drop(page, npy(XYZ), "a.npy")
        page.until("now.measured !== null")
        measured = np.isfinite(XYZ[..., 2])
        assert f"{100 * measured.mean():.1f} % measured, the rest filled" in told()
        sigma = np.array(page.run("Array.from(now.sigma)")).reshape(SIZE)
        shown = "document.querySelector('#limit_mm').textContent"
        assert page.run(shown) == "(all shown)"
        for value in (0, 60):
            page.run(
                f"document.querySelector('#limit').value = {value};"
                " document.querySelector('#limit').dispatchEvent(new Event('input'))"
            )
            limit = sigma.max() * (value / 100) ** 3
            left = (sigma <= limit).mean()
            assert f"{100 * left:.1f} % are left" in page.run(shown)
            pixels = page.run(
                "Array.from(document.querySelector('#flat').getContext('2d').getImageData(0, 0,"
                " now.width, now.height).data)"
            )
            grey = (np.array(pixels).reshape(*SIZE, 4)[..., :3] == 64).all(axis=2)
            assert np.array_equal(grey, sigma > limit)
        row, column = np.argwhere(measured)[7]
        assert page.run(f"sure({row} * now.width + {column})") == ", measured"
        page.screenshot(tmp_path / "filled.png")
        page.run("document.querySelector('[data-view=space]').click()")
        assert page.run("drawn.count") == (sigma <= limit).sum()
        assert not page.errors, page.errors
