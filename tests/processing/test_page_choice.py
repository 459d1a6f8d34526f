"""Which pages are meant by what stands behind the # of a name, and how many a request may have."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.pages import MAX_CHOICE, PageBudget, PageChoice, file_named, split_pages
from pocketvlm.processing.media.sources import NamedBytes

ranges = st.tuples(st.integers(1, 40), st.none() | st.integers(0, 10))


def written(first: int, further: int | None) -> str:
    return f"{first}" if further is None else f"{first}-{first + further}"


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("3", [3]),
        ("2-5", [2, 3, 4, 5]),
        ("1,4-6", [1, 4, 5, 6]),
        ("7-", [7, 8, 9]),
        ("9,1", [9, 1]),
        ("2, 2", [2, 2]),
        ("page=3", [3]),
        ("PAGE=3&zoom=100", [3]),
        ("toolbar=0&page=3", [3]),
        ("page=2-4", [2, 3, 4]),
    ],
)
def test_pages_are_written_as_people_and_browsers_do(text: str, pages: list[int]) -> None:
    choice = PageChoice.parse(text)
    assert [index + 1 for index in choice.indices(9, "a.pdf")] == pages
    assert choice.count(9, "a.pdf") == len(pages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no pages"),
        ("x", "names no pages"),
        ("-3", "names no pages"),
        ("1,", "names no pages"),
        ("1..3", "names no pages"),
        ("²", "names no pages"),
        ("٣", "names no pages"),
        ("1\n", None),
        ("1" * 10, "names no pages"),
        ("0", "count from 1"),
        ("0-2", "count from 1"),
        ("5-2", "Write 2-5"),
        ("page=", "names no pages"),
        ("page=1,2", "names no pages"),
        ("page=1&page=2", "names no one page"),
        ("zoom=100", "names no one page"),
        ("nameddest=toc", "names no pages"),
        ("10", "there is no page 10"),
        ("8-10", "there is no page 10"),
        ("10-", "there is no page 10"),
        ("1-999999999", "there is no page 999999999"),
    ],
)
def test_what_names_no_page_says_so_in_one_line(text: str, message: str | None) -> None:
    if message is None:
        assert PageChoice.parse(text).indices(9, "a.pdf") == [0]
        return
    with pytest.raises(MediaError, match=message) as error:
        PageChoice.parse(text).count(9, "a.pdf")
    assert "\n" not in str(error.value)


@given(st.lists(ranges, min_size=1, max_size=6))
def test_what_is_written_is_read_back(wanted: list[tuple[int, int | None]]) -> None:
    choice = PageChoice.parse(",".join(written(*one) for one in wanted))
    expected = [index for first, further in wanted for index in range(first - 1, first + (further or 0))]
    assert choice.indices(50, "a.pdf") == expected
    assert choice.count(50, "a.pdf") == len(expected)


@given(st.text(max_size=30) | st.text("0123456789-,=pageg& ", max_size=30), st.integers(1, 10**6))
@example("1-", 10**6)
@example("page=1&", 3)
def test_any_text_gives_pages_that_are_there_or_one_line(text: str, total: int) -> None:
    try:
        choice = PageChoice.parse(text)
        count = choice.count(total, "a.pdf")
    except MediaError as error:
        said = str(error)
    else:
        said = ""
        assert count >= 1
    assert len(said) < 300
    assert not said or said.isprintable()
    if not said and count < 1000:
        assert all(0 <= index < total for index in choice.indices(total, "a.pdf"))


def test_a_choice_is_counted_before_it_is_listed() -> None:
    """A range of the longest number takes no memory."""
    everything = PageChoice.parse(",".join(["1-999999999"] * 15))
    with pytest.raises(MediaError, match="there is no page"):
        everything.count(3, "a.pdf")
    assert everything.count(999_999_999, "a.pdf") == 15 * 999_999_999


def test_only_what_is_a_choice_is_taken_from_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-")
    (tmp_path / "b#2.pdf").write_bytes(b"%PDF-")
    (tmp_path / "c.pdf#1").write_bytes(b"%PDF-")
    a, b, c = f"{tmp_path}/a.pdf", f"{tmp_path}/b#2.pdf", f"{tmp_path}/c.pdf#1"
    assert split_pages(f"{a}#2-5") == (a, "2-5")
    assert split_pages(Path(f"{a}#2-5")) == (Path(a), "2-5")
    assert split_pages(b) == (b, None)
    assert split_pages(f"{b}#3") == (b, "3")
    assert split_pages(c) == (c, None)  # a file of that very name
    assert split_pages(f"{c}#1") == (c, "1")
    assert split_pages(f"{tmp_path}/missing.pdf#1") == (f"{tmp_path}/missing.pdf#1", None)
    assert split_pages(f"{a}#2", files=False) == (f"{a}#2", None)  # nothing is looked for
    assert file_named(f"{a}#2-5") == a
    assert split_pages("a\0b#1") == ("a\0b#1", None)
    assert split_pages(5) == (5, None)


def test_urls_and_bytes_carry_their_choice() -> None:
    assert split_pages("https://example.org/a.pdf?b=1#page=3") == ("https://example.org/a.pdf?b=1", "page=3")
    assert split_pages("file:///folder/a%23.pdf#3") == ("file:///folder/a%23.pdf", "3")
    assert split_pages("data:application/pdf;base64,AAAA#2") == ("data:application/pdf;base64,AAAA", "2")
    percent = "data:image/bmp,BM%00#1"  # there it may be a byte of the picture
    assert split_pages(percent) == (percent, None)
    long = "https://example.org/a#" + "1" * (MAX_CHOICE + 1)
    assert split_pages(long) == (long, None)
    body = NamedBytes(b"abc", "a.pdf", "2")
    assert split_pages(body) == (body, "2")
    assert split_pages(b"abc#2") == (b"abc#2", None)


def test_the_pages_of_all_documents_count_together() -> None:
    limits = MediaLimits(max_images=6)
    budget = PageBudget(limits, pictures=3)
    budget.take(1, "a.png")
    budget.take(4, "a.pdf")
    with pytest.raises(MediaError, match=r"^The request has more than 6 pictures and pages\. Choose pages"):
        budget.take(2, "b.pdf")
    with pytest.raises(MediaError, match=r"a\.pdf has 7 pages, at most 6 .* Choose some with #1-6 behind its name"):
        PageBudget(limits).take(7, "a.pdf")
