"""Markdown on a terminal: what each construct looks like, and that pieces, widths and hostile text change nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cli.markdown import TABLE_ROWS, Markdown
from cli.wordwrap import cells

STYLE = re.compile(r"\x1b\[([0-9;]*)m")
NAMES = {"1": "b", "2": "f", "3": "i", "4": "u", "9": "s", "36": "c"}


def written(text: str, columns: int | None = 60, sizes: list[int] | None = None) -> str:
    """All that is written for a text that comes in pieces of the given sizes, and then whole."""
    markdown, out, at = Markdown(columns), "", 0
    for size in sizes or []:
        out += markdown.feed(text[at : at + size])
        at += size
    return out + markdown.feed(text[at:]) + markdown.close()


def settled(out: str) -> str:
    """Without the line that comes and goes while a table comes."""
    return "\n".join(line.rpartition("\r\x1b[K")[2] for line in out.split("\n"))


def styled(text: str, columns: int | None = 60, sizes: list[int] | None = None) -> str:
    """What stands on the screen at the end, each stretch of one style in brackets: `<b:bold>`."""
    out, style = "", ""
    for index, part in enumerate(STYLE.split(settled(written(text, columns, sizes)))):
        if index % 2:
            style = "" if part == "0" else "".join(NAMES.get(code, "?") for code in part.split(";"))
        elif part:
            out += f"<{style}:{part}>" if style else part
    return out


def screen(text: str, columns: int | None = 60, sizes: list[int] | None = None) -> str:
    """The characters that stand on the screen at the end."""
    return STYLE.sub("", settled(written(text, columns, sizes)))


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("**bold** and *italic*", "<b:bold> and <i:italic>"),
        ("__bold__ and _italic_", "<b:bold> and <i:italic>"),
        ("***both*** ~~gone~~", "<bi:both> <s:gone>"),
        ("**bold *both***", "<b:bold><b: ><bi:both>"),
        ("*one **both***", "<i:one><i: ><ib:both>"),
        ("`code *as it is*` ``a`b``", "<c:code><c: *as><c: it><c: is*> <c:a`b>"),
        ("[text](https://a.b/c_(d))", "<u:text><f: (https://a.b/c_(d))>"),
        ("![picture](p.png \"title\")", "<u:picture><f: (p.png)>"),
        ("<https://a.b/c_d_e>", "<u:https://a.b/c_d_e>"),
        ("# Title", "<bu:Title>"),
        ("### A `b`", "<b:A><b: ><bc:b>"),
        ("**bold**text and un**bold**", "<b:bold>text and un<b:bold>"),
    ],
)  # fmt: skip
def test_marks(source: str, shown: str) -> None:
    assert styled(source) == shown


@pytest.mark.parametrize(
    "source",
    [
        "2 * 3 * 4", "snake_case_name and __init__x", "def f(*args, **kwargs): ...", "a ** b ** c", "5 > 4 < 6",
        "#hashtag", "-5 degrees", "3.14", "[1] and [x]", "a [b](c", "wow! [", "`open", "~tilde~", "$x_{i} * y_{j}$",
        r"\(a\) \\ \frac", "1.", "<div>", "C:\\new", "**", "* * x", "a | b", "| no table", "a_b_c", "*\u00a0a*",
    ],
)  # fmt: skip
def test_what_only_looks_like_marks(source: str) -> None:
    assert styled(source) == source.replace("* * x", "• * x").replace("1.", "1. " if source == "1." else "1.")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (r"\*not\* \`code\`", "*not* `code`"),
        ("- one\n* two\n+ three", "• one\n• two\n• three"),
        ("1. one\n10) ten", "1. one\n10) ten"),
        ("- [ ] open\n- [x] done", "☐ open\n☑ done"),
        ("> said\n> > again", "│ said\n│ │ again"),
        ("---", "─" * 20),
        ("* * *", "─" * 20),
        ("one\ntwo\n\nthree", "one\ntwo\n\nthree"),
        ("    *code*", "    *code*"),
        ("- item\n\n      *text* of it", "• item\n\n      text of it"),
    ],
)
def test_blocks(source: str, shown: str) -> None:
    assert screen(source) == shown


def test_lines_break_between_words_and_hang_under_their_text() -> None:
    assert screen("- one two three\n  four five six", 12) == "• one two\n  three\n  four five\n  six"
    assert screen("> one two three", 10) == "│ one two\n│ three"
    assert screen("10. one two", 9) == "10. one\n    two"
    assert screen("**one two** three", 9) == "one two\nthree"
    assert screen("one two three", None) == "one two three"


def test_a_word_longer_than_a_line_is_left_whole_for_who_copies_it() -> None:
    assert screen("see https://example.org/a/b/c now", 12) == "see\nhttps://example.org/a/b/c now"


def test_lines_break_beside_wide_characters_but_never_before_their_full_stop() -> None:
    assert screen("狐狸在森林里跑。它", 11) == "狐狸在森林\n里跑。它"
    assert screen("狐狸在森林。它跑", 11) == "狐狸在森\n林。它跑"


def test_a_word_is_written_once_and_when_it_is_whole() -> None:
    markdown = Markdown(60)
    pieces = [markdown.feed(piece) for piece in ("Fox", "es ", "are **v", "ery", " clever** and ")]
    assert pieces == ["", "Foxes", " are", "", " \x1b[1mvery\x1b[0m\x1b[1m clever\x1b[0m and"]


def test_code_is_coloured_line_by_line_and_never_broken() -> None:
    markdown = Markdown(20)
    assert markdown.feed("```python\ndef f(") == "\x1b[2m```python\x1b[0m\n"
    line = markdown.feed("argument, another_one):\n")
    assert STYLE.sub("", line) == "def f(argument, another_one):\n"
    assert "\x1b[94mdef\x1b[0m" in line
    assert STYLE.sub("", markdown.feed("\treturn **x**\n")) == "\treturn **x**\n"
    assert markdown.feed("```\n*a* b") == "\x1b[2m```\x1b[0m\n\x1b[3ma\x1b[0m"


def test_a_string_that_goes_over_lines_is_one_colour() -> None:
    lines = written('```python\nx = """one\ntwo\n"""\ny\n```\n').split("\n")
    assert [line.startswith("\x1b[33m") for line in lines[2:4]] == [True, True]


def test_code_without_a_language_or_of_an_unknown_one_is_plain() -> None:
    assert written("```\n*a*\n```") == "\x1b[2m```\x1b[0m\n*a*\n\x1b[2m```\x1b[0m"
    assert written("~~~ nolang\n```\n~~~\n*b*").endswith("\n```\n\x1b[2m~~~\x1b[0m\n\x1b[3mb\x1b[0m")


TABLE = "| Name | Count |\n|:--|--:|\n| *fox* | 12 |\n| 狐狸 | 3 |\n"
SHOWN = "Name   Count\n────────────\nfox       12\n狐狸       3"


def test_a_table_has_columns() -> None:
    assert screen(TABLE) == SHOWN
    assert screen(TABLE + "\nand text") == SHOWN + "\n\nand text"
    assert "<b:Name>" in styled(TABLE)
    assert "<i:fox>" in styled(TABLE)


def test_while_a_table_comes_one_line_says_so() -> None:
    markdown = Markdown(60)
    assert markdown.feed("| a |\n|-") == "\r\x1b[K\x1b[2mtable, line 1\x1b[0m"
    assert markdown.feed("--|\n| b") == "\r\x1b[K\x1b[2mtable, line 2\x1b[0m"
    assert STYLE.sub("", markdown.feed(" |\nx ")) == "\r\x1b[Ktable, line 3\r\x1b[Ka\n─\nb\nx"


def test_a_table_folds_its_cells_on_a_narrow_terminal() -> None:
    lines = screen("| a | b |\n|---|---|\n| short | " + "word " * 9 + "|\n", 24).split("\n")
    assert len(lines) > 4
    assert all(cells(line) <= 24 for line in lines)


def test_cells_that_lack_or_are_too_many_and_bars_in_cells() -> None:
    assert screen("| a | b |\n|---|---|\n| 1 |\n| 2 | x \\| y | z |\n").split("\n")[2:] == ["1", "2   x | y"]


def test_a_long_table_is_shown_in_parts() -> None:
    markdown = Markdown(60)
    shown = STYLE.sub("", markdown.feed("| n |\n|---|\n" + "".join(f"| {n} |\n" for n in range(TABLE_ROWS))))
    assert f"\n{TABLE_ROWS - 3}\n" in shown
    assert STYLE.sub("", markdown.close()).endswith(f"n \n──\n{TABLE_ROWS - 2}\n{TABLE_ROWS - 1}")


MARKED = st.text(alphabet="ab *_`~[]()#>-+1.|\\!<\n 狐é。\t", max_size=120)


@given(MARKED, st.integers(8, 40), st.lists(st.integers(1, 9), max_size=40))
@example("**a", 20, [1, 1])
@example("***a** b*", 20, [])
@example("| a |\n|-|\n", 8, [3])
def test_pieces_make_no_difference(text: str, columns: int, sizes: list[int]) -> None:
    assert settled(written(text, columns, sizes)) == settled(written(text, columns))


@given(st.text(alphabet="ab c狐é,\n", max_size=80), st.integers(10, 40))
def test_text_without_marks_loses_nothing_and_fits(text: str, columns: int) -> None:
    shown = screen(text, columns)
    assert "".join(shown.split()) == "".join(text.split())
    words = re.split(r"[ \n]", text)
    if all(cells(word) < columns for word in words):
        assert all(cells(line) < columns for line in shown.split("\n"))


@pytest.mark.parametrize(
    "start",
    ["[a", "*a ", "*a", "`a``", "[](", "![", "***a ", "_", "*a _b ", "> ", "- ", "|", "1. ", "<h", " ", "#", "\\"],
)
def test_hostile_repetition_takes_linear_time(start: str) -> None:
    """An expression or a search that goes back would not end before the universe does."""
    written(start * 3000, 60, [3] * 1000)
