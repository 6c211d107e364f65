"""The settings of the loss: weights by name, and what is refused before anything starts."""

import math
import subprocess
import sys

import pytest
from helpers.losses import BOUNDS, SETTINGS, images, value

from depthdist.losses.settings import DEFAULT_NAMES, NEEDS_MILLIMETERS, LossSettings
from depthdist.losses.terms import LOSSES, compute_losses


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("l1=1,grad=3", {"l1": 1, "grad": 3}),
        ("l1", {"l1": 1}),
        (" grad = 0.5 , l1=2", {"grad": 0.5, "l1": 2}),
        ("l1=0,grad=1", {"l1": 0, "grad": 1}),
        (
            "silog=1,multiscale=0.5,grad_mm=2,grad_trusted",
            {"silog": 1, "multiscale": 0.5, "grad_mm": 2, "grad_trusted": 1},
        ),
    ],
)
def test_the_loss_is_the_weighted_sum_of_the_named(spec, weights):
    settings = LossSettings(loss=spec)
    given = images()
    assert settings.problems() == []
    assert settings.weights() == weights
    parts = compute_losses(settings, *given, BOUNDS)
    assert set(parts) == {*weights, "loss"}
    expected = sum(w * value(name, *given).double() for name, w in weights.items())
    assert parts["loss"].tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_the_default_is_the_recipes_loss():
    assert SETTINGS.weights() == {"l1": 1.0, "grad": 3.0}
    assert (SETTINGS.gamma, SETTINGS.tau) == (10.0, 0.02)
    assert not SETTINGS.problems()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "l2"}, "'l2' is not a loss; there are l1, grad"),
        ({"loss": ""}, "is not a loss"),
        ({"loss": "l1,,grad"}, "is not a loss"),
        ({"loss": "l1=x"}, "expected a number"),
        ({"loss": "l1=-1,grad=3"}, ">= 0"),
        ({"loss": "l1=0"}, "one above 0"),
        ({"gamma": -1.0}, "--gamma is -1.0"),
        ({"gamma": math.nan}, "--gamma is nan"),
        ({"tau": -0.1}, "--tau is -0.1"),
        ({"loss": "l1=nan"}, "l1=nan"),
        ({"loss": "l1=inf"}, "l1=inf"),
        ({"gamma": math.inf}, "--gamma is inf"),
        ({"loss": "l1=1,l1=2"}, "l1"),
        ({"loss": "list"}, "there are l1, grad, grad_mm, grad_trusted, multiscale, silog"),
        ({"tau_mm": -1.0}, "--tau-mm is -1.0: expected >= 0"),
        ({"tau_mm": math.nan}, "--tau-mm is nan"),
        ({"trusted_radius": -1}, "--trusted-radius is -1: expected 0 to 64"),
        ({"scales": 0}, "--scales is 0: expected 1 to 16"),
        ({"scales": 17}, "--scales is 17"),
        ({"silog_lambda": 1.5}, "--silog-lambda is 1.5: expected 0 to 1"),
        ({"silog_lambda": math.nan}, "--silog-lambda is nan"),
        (
            {"relative": True, "loss": "l1=1,silog=1,grad_mm=2"},
            "--relative and --loss l1=1,silog=1,grad_mm=2: grad_mm, silog need millimetres",
        ),
    ],
)
def test_settings_that_cannot_work_are_one_line_each(settings, said):
    (line,) = LossSettings(**settings).problems()
    assert said in line


def test_all_that_is_wrong_is_listed():
    assert len(LossSettings(loss="l1=-1", gamma=-1.0, tau=-1.0).problems()) == 3


def test_the_default_losses_are_registered():
    assert set(DEFAULT_NAMES) <= set(LOSSES)
    assert set(NEEDS_MILLIMETERS) <= set(LOSSES)


def test_the_default_settings_are_checked_without_torch():
    script = (
        "import sys; from depthdist.losses.settings import LossSettings;"
        " from depthdist.models.settings import LoraSettings, ModelSettings;"
        " problems = [*LossSettings().problems(), *LoraSettings().problems()];"
        " problems += ModelSettings().problems();"
        " sys.exit(str(problems) if problems or 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
