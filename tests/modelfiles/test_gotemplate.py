"""Go templates: the language (each expectation is Go's), its errors with their lines, and its limits."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfiles.gotemplate import GoTemplate, TemplateError
from modelfiles.gotemplate_values import GoStruct

NOW = datetime(2024, 3, 1)
DATA: dict[str, Any] = {
    "S": "text",
    "E": "",
    "I": 7,
    "Z": 0,
    "F": 1.5,
    "T": True,
    "N": None,
    "L": ["a", "b", "c"],
    "M": {"y": 1, "x": {"deep": "<&>"}},
    "O": GoStruct("Thing", {"Name": "thing", "Inner": {"k": "v"}}, {"name": "thing"}),
    "U": "é你",
}


def run(text: str, **data: Any) -> str:
    return GoTemplate.parse(text).execute({**DATA, **data}, now=NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # text, trimming, comments
        ("", ""),
        ("a{{ .S }}b", "atextb"),
        ("a \n {{- .S -}} \t\n b", "atextb"),
        ("a {{/* no */}} b", "a  b"),
        ("a {{- /* no */ -}} b", "ab"),
        ("{{ 3 -}} x{{- -3 }}", "3x-3"),
        ("}}", "}}"),
        ("{{ \n .S \n }}", "text"),
        # literals and printing
        ('{{ "a\\n\\t\\"\\\\\\u00e9\\x41" }}', 'a\n\t"\\éA'),
        ("{{ `raw\\n` }}", "raw\\n"),
        ("{{ 'a' }}", "97"),
        ("{{ 0x10 }} {{ 1_000 }} {{ 017 }} {{ 0b11 }} {{ 1e3 }} {{ .5 }} {{ -2 }}", "16 1000 15 3 1000 0.5 -2"),
        (
            "{{ true }} {{ .T }} {{ .I }} {{ .F }} {{ 1e21 }} {{ 1e-5 }} {{ 123456789.0 }}",
            "true true 7 1.5 1e+21 1e-05 1.23456789e+08",
        ),
        ("{{ .N }} {{ .Missing }}", "<no value> <no value>"),
        ("{{ .L }} {{ .M }} {{ .O }}", '[a b c] {"y":1,"x":{"deep":"\\u003c\\u0026\\u003e"}} {"name":"thing"}'),
        # fields, chains, variables
        ("{{ .M.x.deep }} {{ $.S }} {{ (index .L 0) }} {{ (.M).x.deep }} {{ .O.Inner.k }}", "<&> text a <&> v"),
        ('{{ $x := "a" }}{{ $x }}{{ $x = "b" }}{{ $x }}', "ab"),
        ("{{ $x := .M }}{{ $x.x.deep }}", "<&>"),
        ('{{ $x := "a" }}{{ if .T }}{{ $x = "b" }}{{ $x := "c" }}{{ $x }}{{ end }}{{ $x }}', "cb"),
        ("{{ with $x := .S }}{{ $x }}{{ . }}{{ end }}", "texttext"),
        # pipelines
        ('{{ .S | printf "%s-%s" "a" }}', "a-text"),
        ("{{ .L | len | printf `%d%d` 1 }}", "13"),
        ('{{ "x" | eq .S }}', "false"),
        ("{{ (len (slice .L 1)) }}", "2"),
        # if, with, range
        ("{{ if .E }}a{{ else if .Z }}b{{ else if .T }}c{{ else }}d{{ end }}", "c"),
        ("{{ if .Missing }}a{{ else }}b{{ end }}{{ if .O }}c{{ end }}{{ if not .L }}d{{ end }}", "bc"),
        ("{{ with .E }}a{{ else }}b{{ end }}{{ with .M }}{{ .y }}{{ end }}", "b1"),
        ("{{ with .E }}a{{ else with .S }}{{ . }}{{ else }}c{{ end }}", "text"),
        ("{{ range .L }}{{ . }},{{ end }}", "a,b,c,"),
        ("{{ range $i, $x := .L }}{{ $i }}{{ $x }}{{ end }}", "0a1b2c"),
        ("{{ range $x := .L }}{{ $x }}{{ $.I }}{{ end }}", "a7b7c7"),
        ("{{ range $k, $v := .M }}{{ $k }}={{ json $v }};{{ end }}", 'y=1;x={"deep":"\\u003c\\u0026\\u003e"};'),
        ("{{ range .Missing }}a{{ else }}b{{ end }}{{ range 3 }}{{ . }}{{ end }}", "b012"),
        ("{{ range $i, $_ := .L }}{{ if eq $i 1 }}{{ continue }}{{ end }}{{ $i }}{{ end }}", "02"),
        ("{{ range .L }}{{ if eq . `b` }}{{ break }}{{ end }}{{ . }}{{ end }}", "a"),
        ("{{ range .L }}{{ range $.L }}{{ break }}{{ end }}{{ . }}{{ end }}", "abc"),
        ("{{ $x := 0 }}{{ range $x = .L }}{{ end }}{{ $x }}", "c"),
        # templates
        (
            '{{ define "t" }}[{{ . }}{{ $ }}]{{ end }}{{ template "t" .S }}{{ template "t" }}',
            "[texttext][<no value><no value>]",
        ),
        ('{{ block "b" .I }}<{{ . }}>{{ end }}{{ template "b" 8 }}', "<7><8>"),
        ('{{ template "late" 1 }}{{ define "late" }}{{ . }}{{ end }}', "1"),
        # functions
        (
            "{{ and .T .S }} {{ and .E .Missing.x }} {{ or .E .S }} {{ or .T .Missing.x }} {{ and 1 0 2 }}",
            "text  text true 0",
        ),
        ('{{ eq .S "a" "text" }} {{ eq .N "a" }} {{ ne .I 7 }}', "true false false"),
        ('{{ lt 1 2 }} {{ le "b" "a" }} {{ gt 2.5 1.5 }} {{ ge 2 2 }}', "true false true true"),
        (
            "{{ len .U }} {{ len .L }} {{ len .M }} {{ index .L 2 }} {{ index .M `x` `deep` }} {{ index .U 0 }}",
            "5 3 2 c <&> 195",
        ),
        ("{{ slice .S 1 }} {{ slice .S 1 3 }} {{ slice .L 1 2 }} {{ slice .U 0 2 }}", "ext ex [b] é"),
        ('{{ print "a" 1 2 "b" 3 }}|{{ print 1 2 }}|{{ println "a" 1 }}', "a1 2b3|1 2|a 1\n"),
        ('{{ printf "%s %v %d %q" "a" .L 3 "b\\n" }}', 'a [a b c] 3 "b\\n"'),
        (
            '{{ printf "%5d|%-5s|%05d %.2f %t %x %c %% %+d" 4 "c" 5 1.0 true 255 65 6 }}',
            "    4|c    |00005 1.00 true ff A % +6",
        ),
        (
            '{{ printf "%d %s" "a" }} {{ printf "x" 1 }} {{ printf "%s" 3 }}',
            "%!d(string=a) %!s(MISSING) x%!(EXTRA int=1) %!s(int=3)",
        ),
        (
            "{{ json .L }} {{ json .F }} {{ json 1.0 }} {{ json 1e20 }} {{ json 1e-7 }} {{ json .N }} {{ .U | json }}",
            '["a","b","c"] 1.5 1 100000000000000000000 1e-7 null "é你"',
        ),
        ("{{ currentDate }} {{ currentDate `x` }} {{ yesterdayDate }}", "2024-03-01 2024-03-01 2024-02-29"),
        ("{{ toTypeScriptType .S }}", "any"),
        (
            "{{ html `<a href='x'>` }} {{ urlquery `a b&c/é` }} {{ js `'\"<\n` }}",
            "&lt;a href=&#39;x&#39;&gt; a+b%26c%2F%C3%A9 \\'\\\"\\u003C\\u000A",
        ),
        ("{{ not .E }} {{ not .S }}", "true false"),
    ],
    ids=lambda value: value[:40],
)
def test_the_language(text: str, expected: str) -> None:
    assert run(text) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a\n{{ .S", "(line 2): unexpected the end of the text in an action"),
        ("{{ }}", "(line 1): a value is missing for command"),
        ("{{ if }}{{ end }}", "(line 1): a value is missing for if"),
        ("{{ if .S }}", "(line 1): the text ends before {{end}}"),
        ("{{ end }}", "(line 1): unexpected {{end}}"),
        ("{{ else }}", "(line 1): unexpected {{else}}"),
        ("{{ if 1 }}{{ else }}{{ else }}{{ end }}", "(line 1): a second {{else}}"),
        ("\n\n{{ foo }}", '(line 3): function "foo" not defined'),
        ("{{ $x }}", '(line 1): undefined variable "$x"'),
        ("{{ $x = 1 }}", '(line 1): undefined variable "$x"'),
        ("{{ if 1 }}{{ $x := 1 }}{{ end }}{{ $x }}", '(line 1): undefined variable "$x"'),
        ('{{ define "a" }}{{ $x }}{{ end }}', '(line 1): undefined variable "$x"'),
        ("{{ break }}", "(line 1): {{break}} outside of {{range}}"),
        ("{{ range 1 }}{{ end }}{{ continue }}", "(line 1): {{continue}} outside of {{range}}"),
        ('{{ .S | "a" }}', "(line 1): the value in stage 2 of a pipeline is no function"),
        ("{{ .S }}{{/* a", "(line 1): a comment is not closed"),
        ("{{/* a */ b }}", "(line 1): a comment ends before }}"),
        ('{{ "a }}', "(line 1): unexpected '\"' in an action"),
        ('{{ "\\q" }}', "(line 1): unknown escape in '\\\\q'"),
        ("{{ (.S }}", "(line 1): unexpected '}' in an action"),
        ("{{ .S) }}", "(line 1): a right parenthesis that nothing opened"),
        ("{{ .S& }}", "(line 1): unexpected '&' after '.S'"),
        ('{{ .S"a" }}', "(line 1): unexpected '\"' after '.S'"),
        ("{{ 1.x }}", "(line 1): unexpected"),
        ("{{ nil.a }}", "(line 1): unexpected .a after a value that has no fields"),
        ("{{ template x }}", "(line 1): {{template}} without a name in quotes"),
        ("{{ if 1 }}{{ define `x` }}{{ end }}{{ end }}", "(line 1): unexpected {{define}}"),
        ("{{ if .S }}" * 100, "(line 1): blocks are nested deeper than 64"),
        ("{{ " + "(" * 100 + "1" + ")" * 100 + " }}", "(line 1): parentheses are nested deeper than 64"),
    ],
    ids=lambda value: value[:40],
)
def test_templates_that_do_not_parse(text: str, sentence: str) -> None:
    with pytest.raises(TemplateError) as caught:
        GoTemplate.parse(text)
    assert str(caught.value).startswith(f"the template does not parse {sentence}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a\n{{ .Missing.x }}", "(line 2): nil pointer evaluating interface {}.x"),
        ("{{ .S.x }}", "(line 1): can't evaluate field x in type string"),
        ("{{ .O.Nothing }}", "(line 1): can't evaluate field Nothing in type Thing"),
        ("{{ .L.x }}", "(line 1): can't evaluate field x in type []interface {}"),
        ("{{ .S 1 }}", "(line 1): a value that is no function has arguments"),
        ("{{ nil }}", "(line 1): nil is not a command"),
        ('{{ eq .I "a" }}', "(line 1): incompatible types for comparison"),
        ("{{ eq .L .L }}", "(line 1): []interface {} and []interface {} cannot be compared"),
        ("{{ lt .T false }}", "(line 1): invalid type for comparison"),
        ("{{ eq 1 }}", "(line 1): wrong number of args for eq: want 2, got 1"),
        ("{{ not }}", "(line 1): wrong number of args for not: want 1, got 0"),
        ("{{ and }}", "(line 1): wrong number of args for and: want 1, got 0"),
        ("{{ index .L 3 }}", "(line 1): index out of range: 3"),
        ("{{ index .L `a` }}", "(line 1): cannot index a list with a"),
        ("{{ index .N 1 }}", "(line 1): index of untyped nil"),
        ("{{ slice .S 3 1 }}", "(line 1): slice bounds out of range: 3, 1 of 4"),
        ("{{ slice .I 1 }}", "(line 1): can't slice item 7"),
        ("{{ len .I }}", "(line 1): len of type int"),
        ("{{ len .N }}", "(line 1): len of nil pointer"),
        ("{{ range .S }}{{ end }}", "(line 1): range can't iterate over text"),
        ('{{ template "x" }}', '(line 1): template "x" not defined'),
        ("{{ printf 1 }}", "(line 1): printf wants a format as its first argument"),
        ("{{ call .S }}", "(line 1): call has no function to call"),
    ],
    ids=lambda value: value[:40],
)
def test_templates_that_fail(text: str, sentence: str) -> None:
    with pytest.raises(TemplateError) as caught:
        run(text)
    assert str(caught.value).startswith(f"the template fails {sentence}")


def test_the_date_needs_a_clock() -> None:
    with pytest.raises(TemplateError, match="currentDate has no clock"):
        GoTemplate.parse("{{ currentDate }}").execute({})


GROWN = "{{ $x := `abcdefgh` }}{{ range 18 }}{{ $x = print $x $x }}{{ end }}"


@pytest.mark.parametrize(
    "text",
    [
        "{{ range 1000000000000 }}{{ end }}",
        "{{ range 99999 }}{{ range 99999 }}{{ end }}{{ end }}",
        "{{ $x := `ab` }}{{ range 60 }}{{ $x = printf `%s%s` $x $x }}{{ end }}",
        "{{ $x := `ab` }}{{ range 60 }}{{ $x = print $x $x }}{{ end }}",
        "{{ $x := `ab` }}{{ range 60 }}{{ $x = json $x }}{{ end }}" + "{{ range 9999999 }}{{ $x }}{{ end }}",
        "{{ printf `%1000000000d` 1 }}",
        GROWN + "{{ range 99999 }}{{ $y := len $x }}{{ end }}",
        GROWN + "{{ range 99999 }}{{ $y := index $x 3 }}{{ end }}",
        GROWN + "{{ $z := print $x `` }}{{ range 99999 }}{{ $y := eq $x $z }}{{ end }}",
        "{{ range 99999 }}{{ or" + " 0" * 50000 + " }}{{ end }}",
        "{{ $x := 1 }}" * 501,
        "{{ printf `%.1000000000f` 1.5 }}",
        "{{ define `a` }}{{ template `a` . }}{{ end }}{{ template `a` . }}",
        "{{ define `a` }}{{ template `b` }}{{ template `b` }}{{ end }}{{ define `b` }}{{ template `a` }}"
        "{{ template `a` }}{{ end }}{{ template `a` }}",
        "{{ range 999999 }}" + "x" * 9999 + "{{ end }}",
    ],
)
def test_hostile_templates_end_with_an_error(text: str) -> None:
    with pytest.raises(TemplateError):
        run(text)


def test_a_template_may_not_be_huge() -> None:
    with pytest.raises(TemplateError, match="131073 characters; 131072 are allowed"):
        GoTemplate.parse("x" * (2**17 + 1))


pieces = st.sampled_from(
    ["{{", "}}", "{{-", "-}}", " ", "\n", ".S", ".L", "$x", "$x :=", "if", "range", "end", "else", "with", "define",
     "template", '"a"', "`", "(", ")", "|", "=", ",", "1", "printf", "len", "index", "eq", "break", "text", "/*", "*/"]
)  # fmt: skip


@given(st.lists(pieces, max_size=25).map("".join) | st.text())
def test_any_text_runs_or_is_refused(text: str) -> None:
    with contextlib.suppress(TemplateError):
        assert isinstance(run(text), str)
