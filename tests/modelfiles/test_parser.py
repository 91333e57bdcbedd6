"""Modelfiles: the grammar, the sentences about errors, and printing that reads back the same."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelfiles.parser import (
    COMMANDS,
    EMPTY_FROM,
    ROLES,
    UNKNOWN_COMMAND,
    Instruction,
    Modelfile,
    ModelfileError,
    parse,
)
from modelfiles.versions import parse_version

QUOTED = '''
# a comment
FROM llama3.2:1b   # no comment: part of the value
  parameter temperature 0.7
PARAMETER stop " <end> "
PARAMETER\tstop\t"""
"""
TeMpLaTe """{{ .Prompt }}
"quoted" and # kept
"""
SYSTEM "two
lines"
MESSAGE user What is "this"?
MESSAGE assistant ""
LICENSE """"quotes" at both "ends""""
'''


def test_the_grammar() -> None:
    modelfile = parse(QUOTED)
    assert modelfile.instructions == (
        Instruction("from", "llama3.2:1b   # no comment: part of the value"),
        Instruction("parameter", "temperature", "0.7"),
        Instruction("parameter", "stop", " <end> "),
        Instruction("parameter", "stop", "\n"),
        Instruction("template", '{{ .Prompt }}\n"quoted" and # kept\n'),
        Instruction("system", "two\nlines"),
        Instruction("message", "user", 'What is "this"?'),
        Instruction("message", "assistant", ""),
        Instruction("license", '"quotes" at both "ends"'),
    )
    assert [instruction.line for instruction in modelfile.instructions] == [3, 4, 5, 6, 8, 11, 13, 14, 15]
    assert parse(str(modelfile)) == modelfile


def test_what_modelfiles_are_asked() -> None:
    modelfile = parse("FROM a\nFROM b\nSYSTEM x\nSYSTEM y\nMESSAGE user hi\nPARAMETER stop a\nPARAMETER stop b\n")
    assert modelfile.values("from") == ("a", "b")
    assert modelfile.last("system") == "y"
    assert modelfile.last("template") is None
    assert modelfile.messages == (("user", "hi"),)
    assert modelfile.parameters() == ({"stop": ["a", "b"]}, [])


def test_parameters_are_typed_and_deprecated_ones_dropped() -> None:
    modelfile = parse("FROM a\nPARAMETER top_k 5\nPARAMETER top_k 7\nPARAMETER mirostat 1\nPARAMETER use_mmap true\n")
    assert modelfile.parameters() == ({"top_k": 7, "use_mmap": True}, ["parameter mirostat is deprecated"])


def test_requires_is_a_version() -> None:
    assert parse("FROM a").requires() is None
    assert parse("FROM a\nREQUIRES 0.1\nREQUIRES v0.14.0").requires() == "v0.14.0"
    assert parse('FROM a\nREQUIRES ""').requires() == ""
    with pytest.raises(ModelfileError) as caught:
        parse("FROM a\nREQUIRES  new").requires()
    assert str(caught.value) == "(line 2, column 11): 'new' is no version; write it as 0.32.0"


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.32.15", (0, 32, 15)), ("v1", (1, 0, 0)), ("1.2", (1, 2, 0)), ("1.2.3-rc.1+b", (1, 2, 3))],
)
def test_versions(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "1.", "01.0", "1.2.3.4", "1.2-rc", "-1", "1.2.3-", "v", "9" * 5000])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="is no version"):
        parse_version(text)


def test_an_empty_system_message_takes_away_those_before_it() -> None:
    assert parse("FROM a").messages is None
    assert parse('FROM a\nMESSAGE system ""').messages == ()
    text = 'FROM a\nMESSAGE user a\nMESSAGE system ""\nMESSAGE user b\nMESSAGE assistant ""'
    assert parse(text).messages == (("user", "b"), ("assistant", ""))


def test_a_wrong_parameter_names_its_line() -> None:
    with pytest.raises(ModelfileError) as caught:
        parse("FROM a\n\nPARAMETER foo 1\n").parameters()
    assert str(caught.value) == "(line 3, column 11): unknown parameter 'foo'"
    assert caught.value.line == 3


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_line_ends(end: str) -> None:
    modelfile = parse(f"# c{end}FROM a{end}{end}SYSTEM b{end}LICENSE c")
    assert [(item.command, item.value, item.line) for item in modelfile.instructions] == [
        ("from", "a", 2),
        ("system", "b", 4),
        ("license", "c", 5),
    ]


def test_line_ends_inside_of_quotes_stay() -> None:
    assert parse('FROM a\r\nSYSTEM """b\r\nc\r\n"""\r\n').last("system") == "b\r\nc\r\n"


def test_emoji_with_joiners_stay_whole() -> None:
    assert parse("FROM a\nSYSTEM 👩‍💻 says hi").last("system") == "👩‍💻 says hi"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str) -> None:
    assert parse("FROM a\nSYSTEM é你".encode(encoding)).last("system") == "é你"


def test_big_endian_utf_16() -> None:
    assert parse(b"\xfe\xff" + "FROM a".encode("utf-16-be")).last("from") == "a"


@pytest.mark.parametrize(
    ("source", "sentence", "line", "column"),
    [
        ("", "(line 1, column 1): no FROM line", 1, 1),
        ("SYSTEM x\n\n", "(line 3, column 1): no FROM line", 3, 1),
        ("FROM", '(line 1, column 5): unexpected EOF: "FROM" has no value', 1, 5),
        ("FROM a\nFOO b", f"(line 2, column 1): {UNKNOWN_COMMAND}", 2, 1),
        ("FROM\na", f"(line 1, column 1): {UNKNOWN_COMMAND}", 1, 1),
        ("FROM a\n  1 b", f"(line 2, column 3): {UNKNOWN_COMMAND}", 2, 3),
        ("FROM a\nFROM=b", f"(line 2, column 1): {UNKNOWN_COMMAND}", 2, 1),
        ("FROM a\nſYSTEM b", f"(line 2, column 1): {UNKNOWN_COMMAND}", 2, 1),
        (
            "FROM a\nMESSAGE bob hi",
            '(line 2, column 9): message role must be one of "system", "user", or "assistant"',
            2,
            9,
        ),
        (
            "FROM a\nMESSAGE User hi",
            '(line 2, column 9): message role must be one of "system", "user", or "assistant"',
            2,
            9,
        ),
        ("FROM a\nMESSAGE user\n", "(line 2, column 13): a MESSAGE has a role and then its text", 2, 13),
        ("FROM a\nMESSAGE user", "(line 2, column 13): unexpected EOF: a MESSAGE has a role and then its text", 2, 13),
        (
            "FROM a\nPARAMETER top-k 1",
            "(line 2, column 14): a parameter's name is made of letters, digits and _, then its value",
            2,
            14,
        ),
        (
            'FROM a\nSYSTEM """b\n""',
            '(line 2, column 8): unexpected EOF: no line ends with the """ that close this value',
            2,
            8,
        ),
        (
            'FROM a\nSYSTEM "b" c\nLICENSE d',
            '(line 2, column 8): unexpected EOF: no line ends with the " that close this value',
            2,
            8,
        ),
        (
            'FROM a\nSYSTEM """"""""\nb',
            "(line 2, column 8): unexpected EOF: no line of 8 quotes closes this value",
            2,
            8,
        ),
        ("FROM \nSYSTEM x", f"(line 1, column 6): {EMPTY_FROM}", 1, 6),
        ('FROM a\nFROM " "', f"(line 2, column 6): {EMPTY_FROM}", 2, 6),
        (b"\xff", "(line 1, column 1): the Modelfile is not UTF-8 text: invalid start byte at byte 0", 1, 1),
        (
            "FROM a\r\nSYSTEM é".encode() + b"\xff",
            "(line 2, column 9): the Modelfile is not UTF-8 text: invalid start byte at byte 17",
            2,
            9,
        ),
        (b"\xff\xfeF", "(line 1, column 1): the Modelfile is not UTF-16-LE text: truncated data at byte 2", 1, 1),
        (
            "#" * (16 * 2**20 + 1),
            "(line 1, column 1): the Modelfile has 16777217 characters; 16777216 are allowed",
            1,
            1,
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_errors(source: str | bytes, sentence: str, line: int, column: int) -> None:
    with pytest.raises(ModelfileError) as caught:
        parse(source)
    assert (str(caught.value), caught.value.line, caught.value.column) == (sentence, line, column)


def test_impossible_instructions() -> None:
    for args in (("foo", "x"), ("from",), ("parameter", "x"), ("system", "a", "b")):
        with pytest.raises(ModelfileError, match="no instruction is written"):
            Instruction(*args)


def test_printing_is_ollamas_where_ollama_reads_it_back() -> None:
    for value, printed in (
        ("a b", "SYSTEM a b"),
        (" a", 'SYSTEM " a"'),
        ("a\nb", 'SYSTEM "a\nb"'),
        ('a "b"\nc', 'SYSTEM """a "b"\nc"""'),
        ("", 'SYSTEM ""'),
    ):
        assert str(Instruction("system", value)) == printed


# Texts made of what matters to the quoting come up far too seldom in random ones.
tricky = st.text(alphabet='"" \n\r\tab#\u200d\x85\ufeff', max_size=30)
texts = st.one_of(st.text(), tricky, st.text(alphabet='"\n', max_size=24))
sources = texts.filter(str.strip)
instructions = st.one_of(
    st.builds(Instruction, st.sampled_from([c for c in COMMANDS if c not in ("parameter", "message", "from")]), texts),
    st.builds(Instruction, st.just("from"), sources),
    st.builds(
        Instruction, st.just("parameter"), st.text("abcXYZ019_", min_size=1, max_size=10), texts
    ),
    st.builds(Instruction, st.just("message"), st.sampled_from(ROLES), texts),
)  # fmt: skip


@given(st.lists(instructions, max_size=5), sources)
@example([Instruction("system", '"""\n' + '"' * 8 + '\n"')], "a")
@example([Instruction("system", '"' * 8)], '""')
def test_what_is_printed_reads_back(items: list[Instruction], source: str) -> None:
    modelfile = Modelfile((*items, Instruction("from", source)))
    assert parse(str(modelfile)) == modelfile
    assert parse(str(modelfile).encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")) == modelfile


words = st.sampled_from([*COMMANDS, "FROM", "user", "stop", '"', '"""', '"' * 8, "\n", "\r\n", " ", "#", "x"])


@given(st.lists(words, max_size=20).map("".join) | st.text())
def test_any_text_parses_or_is_refused(source: str) -> None:
    with contextlib.suppress(ModelfileError):
        modelfile = parse(source)
        assert parse(str(modelfile)) == modelfile


def test_many_lines_in_quotes_are_read_in_one_go() -> None:
    text = "\n" * 300_000 + "x\n" * 300_000
    assert parse(f'FROM a\nLICENSE """{text}"""').last("license") == text
