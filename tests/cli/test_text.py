# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditr_cache.cli.text import align, bytes_, clean, duration, number, plural, share


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (2.5e12, "2.5 TB"),
        (3e18, "3000 PB"),
    ],
)
def test_bytes(count, text):
    assert bytes_(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (75, "1 min 15 s"),
        (3599.7, "1 h 0 min"),
        (7260, "2 h 1 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_numbers():
    assert number(1234567) == "1,234,567"
    assert number(None) == "-"
    assert number(1.234, 2) == "1.23"
    assert share(1, 8) == "12.5 %"
    assert share(0, 0) == "-"
    assert plural(1, "block") == "1 block"
    assert plural(2000, "block") == "2,000 blocks"


@given(st.text())
def test_clean_is_one_printable_line(text):
    assert clean(text).isprintable()


@given(st.lists(st.tuples(st.text("ab ", max_size=5), st.text("12", max_size=5)), min_size=1))
def test_columns_line_up(rows):
    lines = align(rows, frozenset({1}))
    assert len(lines) == len(rows)
    assert all(line == line.rstrip() for line in lines)
    ends = {len(line) for line, (_, right) in zip(lines, rows, strict=True) if right}
    assert len(ends) <= 1
