"""Each warning: a case that must warn, with its figures in one line, and cases that must not."""

import math
import random

import pytest
import torch

from depthdist.training.diagnostics import budget_exhausted, dominated, nothing_moved

LRS = [5e-5 * (1 - step / 90) for step in range(90)]


def one_line(text, *said):
    assert (
        text
        and "\n" not in text
        and not text.startswith("WARNING")
        and all(part in text for part in said)
    ), text
    return True


# ------------------------------------------------------------------------------------------- budget


def curve(speed, epochs=15, floor=0.05):
    """Eval losses that fall exponentially with the learning rate spent: the recipe's linear decay
    spends 1 - (1 - t)^2 of it."""
    return [
        floor + 1.26 * math.exp(-speed * (1 - (1 - epoch / epochs) ** 2))
        for epoch in range(epochs + 1)
    ]


def test_a_run_that_ends_while_falling_is_told_to_go_on_with_its_figures():
    losses = curve(3)
    fell = f"{100 * (1 - losses[-1] / losses[-4]):.1f} % over the last 3 evaluations"
    assert one_line(
        budget_exhausted(losses, LRS),
        "learning-rate budget exhausted and eval loss still falling",
        fell,
        f"{sum(LRS):.2e}",
        "raise --epochs or --lr",
    )


@pytest.mark.parametrize("speed, warns", [(2, True), (5, True), (7, False), (20, False)])
def test_the_threshold_lies_where_a_tenth_of_the_loss_is_still_to_be_had(speed, warns):
    losses = curve(speed)
    assert (budget_exhausted(losses, LRS) is not None) is warns and (
        losses[-1] / 0.05 > 1.1
    ) is warns


def test_noise_around_a_level_hardly_ever_warns():
    draw = random.Random(0)
    warned = sum(
        budget_exhausted([1.3] + [0.1 * math.exp(draw.gauss(0, 0.1)) for _ in range(15)], LRS)
        is not None
        for _ in range(4000)
    )
    assert warned <= 4000 / 455


@pytest.mark.parametrize(
    "losses, lrs",
    [
        (curve(3), [5e-5] * 90),  # a constant rate is not exhausted
        (curve(3), LRS[:60]),  # stopped early
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.3, 0.4], LRS),  # rises again
        ([1.0, 0.5, 0.2, 0.9, 0.5, 0.4], LRS),  # was lower before
        ([1.0, 0.5, math.nan, 0.4, 0.3, 0.2], LRS),
        ([1.0, 0.5], LRS),  # too few to tell
        ([], []),
    ],
)
def test_no_word_of_the_budget_where_it_is_not_the_reason(losses, lrs):
    assert budget_exhausted(losses, lrs) is None


def test_three_evaluations_are_enough():
    assert one_line(
        budget_exhausted([1.3, 0.9, 0.6], LRS[-6:]), "the last 2 evaluations, 1.3 to 0.6"
    )


# ------------------------------------------------------------------------------------ nothing moved


def weights(scale=0.05):
    generator = torch.Generator().manual_seed(0)
    found = {
        f"net.layer.{i}.lora_{ab}.default.weight": (
            torch.randn(4, 6, generator=generator) * scale * (ab == "A")
        )
        for i in range(3)
        for ab in "AB"
    }
    return {**found, "net.head.conv.weight": torch.ones(5)}


def moved(names, by=1e-6):
    return {
        name: x + by if any(part in name for part in names) else x.clone()
        for name, x in weights().items()
    }


def test_no_lora_weight_moved_though_the_decoder_did():
    assert one_line(
        nothing_moved(weights(), moved(["head"])),
        "no LoRA weight moved",
        "net.layer.0.lora_A.default.weight, ",
        "...",
    )


def test_a_change_within_rounding_is_no_move():
    next_float = {
        name: torch.nextafter(x, x.sign() * 9) if "lora_A" in name else x
        for name, x in weights().items()
    }
    assert "no LoRA weight moved" in nothing_moved(weights(), next_float)


def test_the_ones_that_stayed_are_named_where_the_others_moved():
    text = nothing_moved(weights(), moved(["layer.0", "layer.2"]))
    assert one_line(
        text,
        "2 of 6 LoRA weights did not move",
        "(net.layer.1.lora_A.default.weight, net.layer.1.lora_B.default.weight)",
    )


def test_no_word_where_all_moved_or_there_is_no_lora():
    assert nothing_moved(weights(), moved(["lora_"])) is None, "the decoder may stay"
    assert nothing_moved({"head": torch.ones(2)}, {"head": torch.ones(2)}) is None


def test_one_moved_element_is_a_move_and_so_is_a_nan():
    for value in (1e-12, math.nan):
        now = moved(["lora_A"])
        for name, x in now.items():
            x.view(-1)[-1] += value if "lora_B" in name else 0
        assert nothing_moved(weights(), now) is None


# ---------------------------------------------------------------------------------------- dominated


def loss_map(few, share, shape=(40, 50)):
    """`few` pixels from row 30 on carry `share` of the loss together, the others the rest in equal
    parts."""
    found = torch.full(shape, (1 - share) / (shape[0] * shape[1] - few))
    found.view(-1)[30 * shape[1] : 30 * shape[1] + few] = share / few
    return found


def test_a_few_pixels_that_carry_half_of_the_loss_are_counted_and_placed():
    text = dominated(loss_map(10, 0.6), torch.ones(40, 50, dtype=torch.bool))
    assert one_line(
        text,
        "loss is dominated by 0.45 % of the pixels",
        "half of it comes from 9 of 2,000",
        "rows 30..30, columns 0..9",
    )


@pytest.mark.parametrize(
    "few, share, warns",
    [(40, 0.51, True), (41, 0.5001, False), (10, 0.45, False), (400, 0.9, False), (1, 0.999, True)],
)
def test_it_warns_up_to_2_percent_of_the_pixels(few, share, warns):
    assert (
        dominated(loss_map(few, share), torch.ones(40, 50, dtype=torch.bool)) is not None
    ) is warns


def test_ordinary_errors_do_not_dominate():
    generator, mask = torch.Generator().manual_seed(0), torch.ones(200, 300, dtype=torch.bool)
    for values in (
        torch.rand(200, 300, generator=generator),
        torch.randn(200, 300, generator=generator).abs(),
        -torch.rand(200, 300, generator=generator).log(),
    ):
        assert dominated(values, mask) is None


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e6])
def test_what_stands_outside_the_mask_does_not_count(junk):
    mask = torch.ones(40, 50, dtype=torch.bool)
    mask[:20] = False
    values = loss_map(10, 0.7)
    text = dominated(torch.where(mask, values, junk), mask)
    assert text == dominated(torch.where(mask, values, 0.0), mask) and one_line(text, "of 1,000")
    assert dominated(torch.where(mask, 0.5, junk), mask) is None


def test_a_perfect_prediction_and_an_empty_mask_have_nothing_to_dominate():
    assert dominated(torch.zeros(40, 50), torch.ones(40, 50, dtype=torch.bool)) is None
    assert dominated(torch.ones(40, 50), torch.zeros(40, 50, dtype=torch.bool)) is None
    assert dominated(torch.full((40, 50), math.nan), torch.ones(40, 50, dtype=torch.bool)) is None
