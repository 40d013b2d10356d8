"""Names in pictures: what no font has, and what is too long."""

import pytest

from lambdanet.drawing import names


def test_what_cannot_be_drawn_is_escaped():
    assert names.drawable("US$ a_b <x>", 1000, 15) == "US$ a_b <x>"
    assert names.drawable("猫\n", 1000, 15) == r"\u732b\n"
    assert names.drawable("é ß Ж π", 1000, 15) == "é ß Ж π"


@pytest.mark.parametrize("name", ["a very long name of a class that ends in B", "i" * 9999 + "B"])
def test_long_names_lose_their_middle(name):
    for width in (50, 80, 120):
        short = names.drawable(name, width, 15)
        first, last = short.split("…")
        assert name.startswith(first) and name.endswith(last) and last[-1] == "B"
        room = width - names.font(15).getlength(short)
        assert 0 <= room < 2 * names.font(15).getlength("w")
