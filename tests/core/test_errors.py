"""An error on one line: its start and its end are kept."""

from depthdist.core.errors import LINE_LENGTH, REASON_LENGTH, one_line, one_reason


def test_what_fits_stays_as_it_is_on_one_line():
    text = "x" * (LINE_LENGTH - 4)
    assert one_line(f"a\n  {text}\tb\n") == f"a {text} b"


def test_of_a_longer_error_the_start_and_the_end_are_kept():
    shown = one_line(ValueError(f"wrong file {'x' * 5000} install it again"))
    assert len(shown) == LINE_LENGTH
    assert shown.startswith("wrong file xx") and shown.endswith("xx install it again")
    assert shown.count("xx ... xx") == 1


def test_a_place_with_less_room_says_how_much():
    assert one_line("abcdefghijklmnop", 12) == "abcd ... nop"
    assert len(one_reason("x" * 5000)) == REASON_LENGTH


def test_an_error_without_text_is_named_by_its_type():
    assert one_line(ValueError()) == "ValueError"
