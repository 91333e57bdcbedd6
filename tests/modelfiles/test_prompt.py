"""Chat templates: exactly what the references render, capabilities, and limits against templates that mean harm."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from modelfiles.prompt import Message, TemplateError, ToolCall, go_prompt_template, jinja_prompt_template

NOW = datetime(2024, 7, 26, 12)
TOKENS = {"bos_token": "<BOS>", "eos_token": "<EOS>", "pad_token": "<PAD>", "unk_token": "<UNK>"}
USER = [Message("user", "hi")]


def render(text: str, messages: list[Message] = USER, **options: Any) -> str:
    return jinja_prompt_template(text, TOKENS).render(messages, now=NOW, **options)


def message(given: dict[str, Any]) -> Message:
    """A message of the golden file, which is in the format of apply_chat_template."""
    calls = [(call["id"], call["function"]) for call in given.get("tool_calls", ())]
    return Message(
        given["role"],
        given["content"],
        tool_calls=tuple(ToolCall(id, function["name"], function["arguments"]) for id, function in calls),
        tool_name=given.get("name", ""),
        tool_call_id=given.get("tool_call_id", ""),
    )


# ---- golden


def test_every_golden_conversation(data_dir: Path) -> None:
    golden = json.loads((data_dir / "golden/chat_templates.json").read_text())
    num_texts = num_errors = 0
    for name, cases in golden["templates"].items():
        if name.startswith("hf:"):
            config = (data_dir / "vocab/hf" / name.removeprefix("hf:") / "tokenizer_config.json").read_text()
            text = json.loads(config)["chat_template"]
        else:
            text = (data_dir / "templates/jinja" / name).read_text()
        template = jinja_prompt_template(text, TOKENS)
        for case, expected in cases.items():
            given = golden["cases"][case]
            messages = [message(turn) for turn in given["messages"]]
            options = {"tools": given["tools"] or (), "add_generation_prompt": given["add_generation_prompt"]}
            if "error" in expected:
                with pytest.raises(TemplateError) as caught:
                    template.render(messages, now=NOW, **options)
                assert expected["error"].partition(": ")[2] in str(caught.value)
                num_errors += 1
            else:
                assert template.render(messages, now=NOW, **options) == expected["text"], f"{name}, {case}"
                num_texts += 1
    assert num_texts > 200
    assert num_errors > 10


def test_every_jinja_template_compiles_and_says_what_it_can(data_dir: Path) -> None:
    can = {
        path.stem: jinja_prompt_template(path.read_text(), TOKENS).capabilities
        for path in (data_dir / "templates/jinja").glob("*.jinja")
    }
    assert len(can) > 30
    assert all("completion" in names and "insert" not in names for names in can.values())
    assert can["Qwen-Qwen2.5-7B-Instruct"] == {"completion", "tools"}
    assert can["GLM-4.7-Flash"] == {"completion", "tools", "thinking"}
    assert can["deepseek-ai-DeepSeek-R1-Distill-Llama-8B"] >= {"completion", "thinking"}


def test_templates_of_older_models_render(data_dir: Path) -> None:
    lines = (data_dir / "templates/go/testdata/templates.jsonl").read_text().splitlines()
    assert len(lines) > 30
    for line in lines:
        ((name, text),) = json.loads(line).items()
        assert "hi" in jinja_prompt_template(text, TOKENS).render(USER, now=NOW), name


def test_golden_go_conversations(data_dir: Path) -> None:
    system = Message("system", "You are a helpful assistant.")
    first = Message("user", "Hello, how are you?")
    answer = Message("assistant", "I'm doing great. How can I help you today?")
    second = Message("user", "I'd like to show off how chat templating works!")
    folder = data_dir / "templates/go"
    paths = sorted(folder.glob("*.gotmpl"))
    assert len(paths) > 10
    for path in paths:
        template = go_prompt_template(path.read_text())
        for name, messages in (
            ("user", [first]),
            ("user-assistant-user", [first, answer, second]),
            ("system-user-assistant-user", [system, first, answer, second]),
        ):
            expected = (folder / "testdata" / path.name / name).read_text()
            assert template.render(messages, now=NOW) == expected, f"{path.name}, {name}"


# ---- what a Jinja template sees


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", {}, "<BOS>hi<EOS>"),
        ("{{ tools is none }}{{ documents is none }}", {}, "TrueTrue"),
        ("{{ tools | tojson }}", {"tools": [{"type": "function", "b": "<é>"}]}, '[{"type": "function", "b": "<é>"}]'),
        ("{{ {'a': [1]} | tojson(indent=2) }}", {}, '{\n  "a": [\n    1\n  ]\n}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", {}, '{"a": 2, "b": 1}'),
        ("{{ add_generation_prompt }}", {"add_generation_prompt": False}, "False"),
        ("{{ enable_thinking is defined }}{{ thinking is defined }}", {}, "FalseFalse"),
        ("{{ enable_thinking }}{{ thinking }}", {"think": False}, "FalseFalse"),
        ("{{ enable_thinking }}{{ reasoning_effort }}", {"think": "high"}, "Truehigh"),
        ("{{ strftime_now('%d %b %Y') }}", {}, "26 Jul 2024"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", {}, "012"),
        ("{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x is defined }}", {}, "aFalse"),
        ("{% if true %}\n  {%- set x = 1 %}\n\n{% endif %}\nx", {}, "\nx"),
        ("   {% if true %}\nx\n   {% endif %}\ny", {}, "x\ny"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", {}, "a1"),
        ("{{ 'a' ~ 1 ~ none ~ undefined_name }}", {}, "a1None"),
        ("{{ ('a', 'b') | join('-') }}{{ [1, 2][::-1] }}{{ 'x' in ['x'] }}{{ 1 < 2 < 3 }}", {}, "a-b[2, 1]TrueTrue"),
        ("{{ '%s-%d' % ('a', 5) }}{{ '{:>3}'.format('b') }}{{ '%5s' | format('c') }}", {}, "a-5  b    c"),
        ("{% macro m(a) %}[{{ a }}{{ caller() }}]{% endmacro %}{% call m(1) %}x{% endcall %}", {}, "[1x]"),
    ],
)
def test_jinja(text: str, options: dict[str, Any], expected: str) -> None:
    assert render(text, **options) == expected


def test_keys_without_a_value_are_undefined() -> None:
    text = "{% for m in messages %}{{ m.keys() | list | join(',') }};{% endfor %}"
    call = ToolCall("", "f", {"a": 1})
    messages = [
        Message("user", "x"),
        Message("assistant", "", thinking="hm", tool_calls=(call,)),
        Message("tool", "1", tool_name="f", tool_call_id="c1"),
    ]
    assert render(text, messages) == (
        "role,content;role,content,thinking,reasoning_content,tool_calls;role,content,name,tool_call_id;"
    )
    assert render("{{ messages[1].tool_calls | tojson }}", messages) == (
        '[{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]'
    )


def test_tools_that_the_system_message_carries() -> None:
    text = (
        "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message %}"
        "<|system|>{{ message['content'] }}<|tool|>{{ message['tools'] }}<|/tool|>{% else %}"
        "<|{{ message['role'] }}|>{{ message['content'] }}{% endif %}{% endfor %}"
    )
    assert "tools" in jinja_prompt_template(text, {}).capabilities
    tools = [{"type": "function", "function": {"name": "f", "description": "é"}}]
    written = '<|tool|>[{"name": "f", "description": "é"}]<|/tool|>'
    assert render(text, [Message("system", "s"), *USER], tools=tools) == f"<|system|>s{written}<|user|>hi"
    assert render(text, USER, tools=tools) == f"<|system|>{written}<|user|>hi"
    assert render(text, USER) == "<|user|>hi"


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_last_message_of_the_assistant_is_continued() -> None:
    messages = [*USER, Message("assistant", "Once upon ")]
    assert render(CHATML, messages) == "<|user|>hi<|end|><|assistant|>Once upon "
    closed = "<|user|>hi<|end|><|assistant|>Once upon <|end|>"
    assert render(CHATML, messages, add_generation_prompt=False) == closed
    with_call = [*USER, Message("assistant", "x", tool_calls=(ToolCall("1", "f", {}),))]
    assert render(CHATML, with_call).endswith("<|assistant|>x<|end|><|assistant|>")


def test_a_template_that_does_not_print_the_last_message_gets_its_own_end() -> None:
    text = "{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
    assert render(text, [*USER, Message("assistant", "x")]) == "hi>"


def test_generate_is_a_conversation_of_one_turn() -> None:
    template = jinja_prompt_template(CHATML, {})
    assert template.render_generate("x", system="s", now=NOW) == "<|system|>s<|end|><|user|>x<|end|><|assistant|>"
    with pytest.raises(TemplateError, match="cannot insert"):
        template.render_generate("x", suffix="y", now=NOW)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{% if %}", "the chat template does not parse (line 1): Expected an expression, got 'end of statement block'"),
        ("a\n{{ b }", "the chat template does not parse (line 2): unexpected '}'"),
        ("{{ x | nothing }}", "the chat template does not parse (line 1): No filter named 'nothing'."),
        ("{{ raise_exception('no system') }}", "the chat template refuses the conversation: no system"),
        ("{{ 1 / 0 }}", "the chat template fails: division by zero"),
        ("{{ nothing.a }}", "the chat template fails: 'nothing' is undefined"),
        ("{% include 'a' %}", "the chat template fails: no loader for this environment specified"),
        ("x" * (2**17 + 1), "the chat template has 131073 characters; 131072 are allowed"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_wrong_templates(text: str, sentence: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(text)
    assert str(caught.value) == sentence


# ---- templates that mean harm

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}{{ messages.__class__.__base__.__subclasses__ }}",
    "{{ (messages | attr('__class__')).__mro__ }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__['os'] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment.x }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages.clear() }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{{ strftime_now.__self__.x }}",
    "{{ strftime_now.func.__globals__.x }}",
    "{{ step.__self__.budget }}",
    "{{ (('{0.__class__.__init__.__globals__}' | attr('format'))(messages)).x }}",
    "{{ ('{0.__class__.__mro__}'.format(1)).x.y }}",
    "{{ ('{a.__class__.__mro__}'.format_map({'a': 1})).x.y }}",
    "{{ ['{0.__class__.__mro__}'.format][0](1).x.y }}",
    "{% set f = '{0.__class__.__mro__}'.format %}{{ f(1).x.y }}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
    "{% from 'os' import system %}",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_the_sandbox_holds(text: str) -> None:
    with pytest.raises(TemplateError):
        render(text)


@pytest.mark.parametrize(
    "text",
    [
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ''.__class__ }}",
        "{{ '' | attr('__class__') }}",
        "{{ ['{0.__class__}'] | map('attr', 'format') | list }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ environment }}{{ context }}{{ self.environment }}",
    ],
)
def test_what_the_sandbox_hides_prints_as_nothing(text: str) -> None:
    assert "class '" not in render(text)


def grow(step: str, start: str = "'ab'") -> str:
    """A template that grows one value sixty times."""
    return (
        f"{{% set ns = namespace(a={start}) %}}{{% for i in range(60) %}}{{% set ns.a = {step} %}}{{% endfor %}}"
        "{{ ns.a }}"
    )


TWINS = (
    "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
    "{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)
HOSTILE = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
    "loops over maps": "{% for i in range(90000) %}{% set x = range(90000) | map('string') | list %}{% endfor %}",
    "repeated text": "{{ ('a' * 10**10) | length }}",
    "repeated list": "{{ ([1] * 10**10) | length }}",
    "tower of powers": "{{ 9 ** (9 ** 9) }}",
    "squares": grow("ns.a * ns.a", "3"),
    "doubled by +": grow("ns.a + ns.a"),
    "doubled by ~": grow("ns.a ~ ns.a"),
    "doubled by join": grow("[ns.a, ns.a] | join"),
    "doubled by the method join": grow("''.join([ns.a, ns.a])"),
    "doubled by replace": grow("ns.a.replace('a', ns.a)"),
    "doubled by the filter replace": grow("ns.a | replace('a', ns.a)"),
    "doubled by %": grow("'%s%s' % (ns.a, ns.a)"),
    "doubled by format": grow("'{}{}'.format(ns.a, ns.a)"),
    "doubled by a block": "{% set ns = namespace(a='ab') %}{% for i in range(60) %}{% set x %}{{ ns.a }}{{ ns.a }}"
    "{% endset %}{% set ns.a = x %}{% endfor %}",
    "shared lists": grow("[ns.a, ns.a]", "[1]"),
    "shared lists as JSON": grow("[ns.a, ns.a]", "[1]").replace("ns.a }}", "ns.a | tojson }}"),
    "shared maps as text": grow("{'a': ns.a, 'b': ns.a}", "[1]").replace("ns.a }}", "(ns.a | string) }}"),
    "shared lists compared": TWINS + "{{ ns.a == ns.b }}",
    "shared lists tested": TWINS + "{{ ns.a is eq(ns.b) }}",
    "shared tuples": grow("(ns.a, ns.a)", "(1,)"),
    "slices of text": "{% set a = 'x' * 4000000 %}{% for i in range(99999) %}{% set b = a[::-1] %}{% endfor %}",
    "slices of lists": "{% set a = [1] * 4000000 %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "ljust": "{{ 'a'.ljust(10**10) | length }}",
    "zfill": "{{ 'a'.zfill(10**10) | length }}",
    "expandtabs": "{{ ('\t' * 10000).expandtabs(10000) | length }}",
    "center": "{{ 'a' | center(10**10) }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "batch": "{{ [1] | batch(10**10, 0) | list }}",
    "slices": "{{ [1] | slice(10**10) | list }}",
    "indented JSON": "{{ [1] | tojson(indent=10**10) }}",
    "wide %": "{{ '%10000000000s' % 'a' }}",
    "wide *": "{{ '%*s' % (10**10, 'a') }}",
    "wide format": "{{ '{:>10000000000}'.format('a') }}",
    "wide nested format": "{{ '{:>{}}'.format('a', 10**10) }}",
    "wide format filter": "{{ '%10000000000s' | format('a') }}",
    "wide date": "{{ strftime_now('%1000000000d') }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "round": "{{ 5 | round(-1000000000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 100000}) | length }}",
    "sum of lists": "{{ ([[1] * 1000] * 1000) | sum(start=[]) | length }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "block recursion": "{% block a %}{{ self.a() }}{% endblock %}",
    "deep blocks": "{% if 1 %}" * 5000,
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep loops": "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_with_an_error(name: str) -> None:
    # Without the limits, each of these runs for minutes or until memory ends.
    with pytest.raises(TemplateError):
        render(HOSTILE[name])


def test_long_conversations_stay_within_the_budget(data_dir: Path) -> None:
    text = (data_dir / "templates/jinja/Qwen-Qwen2.5-7B-Instruct.jinja").read_text()
    messages = [Message("user" if index % 2 else "assistant", "word " * 2000) for index in range(600)]
    assert len(render(text, messages)) > 6_000_000


def test_one_template_serves_many_threads() -> None:
    template = jinja_prompt_template(CHATML, {})
    with ThreadPoolExecutor(8) as pool:
        texts = pool.map(lambda n: template.render([Message("user", str(n))], now=NOW), range(200))
        assert list(texts) == [f"<|user|>{n}<|end|><|assistant|>" for n in range(200)]
