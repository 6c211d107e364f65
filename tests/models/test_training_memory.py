"""The memory that training needs: counted by hand, and compared with what autograd keeps."""

import pytest
from helpers.models import (
    bytes_kept_for_backward,
)

from depthdist.models.base_model import load_base
from depthdist.models.lora import add_lora
from depthdist.models.settings import LoraSettings
from depthdist.models.training_memory import training_memory

pytestmark = [
    pytest.mark.usefixtures("quietly_on_one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def tiny_with_lora():
    return add_lora(load_base("tiny"), LoraSettings(), seed=0)


def test_memory_of_weights_and_optimizer_is_counted_by_hand(tiny_with_lora):
    trained, total = tiny_with_lora.parameter_counts()
    full, half = (
        training_memory(tiny_with_lora, (28, 42), 1, precision) for precision in ("fp32", "fp16")
    )
    assert full["weights"] == 4 * total
    assert half["weights"] == 2 * total
    # gradient, and Adam's two moments; in fp16 the gradient is half, and there is the master
    assert full["gradients, masters and optimizer"] == 12 * trained
    assert half["gradients, masters and optimizer"] == 14 * trained
    assert half["activations"] == full["activations"] // 2 > 0
    assert next(tiny_with_lora.parameters()).device.type == "cpu", (
        "the model itself stays where it is"
    )


def test_memory_of_activations_grows_with_the_micro_batch_and_the_image(tiny_with_lora):
    one, two, four = (
        training_memory(tiny_with_lora, (224, 336), batch, "fp32")["activations"]
        for batch in (1, 2, 4)
    )
    assert (four - two) == pytest.approx(2 * (two - one), rel=1e-3)
    assert two > 1.8 * one
    assert training_memory(tiny_with_lora, (224, 672), 1, "fp32")["activations"] > 1.8 * one


@pytest.mark.parametrize("size", [(28, 42), (224, 336)])
def test_memory_of_activations_is_what_autograd_keeps(tiny_with_lora, size):
    needed = bytes_kept_for_backward(tiny_with_lora, size, 2)
    assert training_memory(tiny_with_lora, size, 2, "fp32")["activations"] == pytest.approx(
        needed, rel=0.1
    )
