"""Tables of the command line fit the terminal, and lose no word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sat.commands.tables import NARROWEST, fit

WORD = st.text("abcdefg", min_size=1, max_size=9)
CELL = st.lists(WORD, max_size=12).map(" ".join)


@given(st.lists(st.tuples(WORD, CELL, WORD), max_size=5), st.integers(20, 120))
def test_a_table_fits_and_loses_no_word(rows, width):
    lines = fit(("key", "what it is", "state"), rows, width=width, wide=1).splitlines()
    rest = max(len(row[0]) for row in (*rows, ("key",)))
    rest += max(len(row[2]) for row in (*rows, ("", "", "state"))) + 4
    assert max(map(len, lines)) <= max(width, rest + NARROWEST)
    words = " ".join(lines[2:]).split()
    assert sorted(words) == sorted(word for row in rows for word in " ".join(row).split())


def test_a_table_in_full():
    rows = [("golden", "defines the bits of all products", "ready"), ("rtl", "counts", "no g++")]
    assert fit(("device", "what", "state"), rows, width=32, wide=1) == (
        "device  what              state\n"
        "------  ----------------  ------\n"
        "golden  defines the bits  ready\n"
        "        of all products\n"
        "rtl     counts            no g++"
    )


def test_the_last_column_is_wrapped_unless_told():
    assert fit(("a", "b"), [("x", "one two three")], width=17) == "\n".join(
        ("a  b", "-  -------------", "x  one two three")
    )
    assert fit(("a", "b"), [("x", "one two three")], width=9).splitlines()[2:] == [
        "x  one two",
        "   three",
    ]
