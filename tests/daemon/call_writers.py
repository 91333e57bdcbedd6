"""How models of each family write calls: the counterparts of the parsers, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from daemon.parsers.tool_calls import ParsedCall


def _json(call: ParsedCall, key: str = "arguments") -> str:
    return json.dumps({"name": call.name, key: call.arguments}, ensure_ascii=False)


def _list(calls: Sequence[ParsedCall], key: str = "arguments") -> str:
    return f"[{', '.join(_json(call, key) for call in calls)}]"


def _python(call: ParsedCall) -> str:
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hermes(calls: Sequence[ParsedCall]) -> str:
    return "\n".join(f"<tool_call>\n{_json(call)}\n</tool_call>" for call in calls)


def _coder(calls: Sequence[ParsedCall]) -> str:
    written = []
    for call in calls:
        pairs = [f"<parameter={key}>\n{_text(value)}\n</parameter>\n" for key, value in call.arguments.items()]
        written.append(f"<tool_call>\n<function={call.name}>\n{''.join(pairs)}</function>\n</tool_call>")
    return "\n".join(written)


def _functionary(calls: Sequence[ParsedCall]) -> str:
    return "".join(f"<function={call.name}>{json.dumps(call.arguments)}</function>" for call in calls)


def _glm(calls: Sequence[ParsedCall]) -> str:
    written = []
    for call in calls:
        pairs = [
            f"<arg_key>{key}</arg_key>\n<arg_value>{_text(value)}</arg_value>\n"
            for key, value in call.arguments.items()
        ]
        written.append(f"<tool_call>{call.name}\n{''.join(pairs)}</tool_call>")
    return "\n".join(written)


def _deepseek_r1(calls: Sequence[ParsedCall]) -> str:
    written = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{call.name}\n```json\n{json.dumps(call.arguments)}\n```"
        "<｜tool▁call▁end｜>"
        for call in calls
    ]
    return f"<｜tool▁calls▁begin｜>{chr(10).join(written)}<｜tool▁calls▁end｜>"


def _deepseek_v3(calls: Sequence[ParsedCall]) -> str:
    written = [
        f"<｜tool▁call▁begin｜>{call.name}<｜tool▁sep｜>{json.dumps(call.arguments)}<｜tool▁call▁end｜>"
        for call in calls
    ]
    return f"<｜tool▁calls▁begin｜>{''.join(written)}<｜tool▁calls▁end｜>"


def _mistral(calls: Sequence[ParsedCall]) -> str:
    return "".join(f"[TOOL_CALLS]{call.name}[ARGS]{json.dumps(call.arguments)}" for call in calls)


def _mistral_with_ids(calls: Sequence[ParsedCall]) -> str:
    return "".join(f"[TOOL_CALLS]{call.name}[CALL_ID]aB3dE6gH9[ARGS]{json.dumps(call.arguments)}" for call in calls)


def _braced(value: object, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_braced(item, quote)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_braced(item, quote) for item in value) + "]"
    return json.dumps(value)


def _gemma4(calls: Sequence[ParsedCall]) -> str:
    quote = '<|"|>'
    return "".join(f"<|tool_call>call:{call.name}{_braced(call.arguments, quote)}<tool_call|>" for call in calls)


def _functiongemma(calls: Sequence[ParsedCall]) -> str:
    return "".join(
        f"<start_function_call>call:{call.name}{_braced(call.arguments, '<escape>')}<end_function_call>"
        for call in calls
    )


def _harmony(calls: Sequence[ParsedCall]) -> str:
    return "<|end|><|start|>assistant".join(
        f"<|channel|>commentary to=functions.{call.name} <|constrain|>json<|message|>{json.dumps(call.arguments)}"
        for call in calls
    )


WRITERS: dict[str, tuple[str, Callable[[Sequence[ParsedCall]], str]]] = {
    "hermes": ("hermes", _hermes),
    "qwen3-coder": ("qwen3-coder", _coder),
    "functionary": ("functionary", _functionary),
    "glm": ("glm", _glm),
    "apriel": ("apriel", lambda calls: f"<tool_calls>{_list(calls)}</tool_calls>"),
    "nemotron": ("nemotron", lambda calls: f"<TOOLCALL>{_list(calls)}</TOOLCALL>"),
    "llama, JSON": ("llama", lambda calls: "; ".join(_json(call, "parameters") for call in calls)),
    "llama, behind its mark": (
        "llama",
        lambda calls: "<|python_tag|>" + "; ".join(_json(call, "parameters") for call in calls),
    ),
    "llama, Python": ("llama", lambda calls: f"[{', '.join(map(_python, calls))}]"),
    "llama 4": ("llama", lambda calls: f"<|python_start|>[{', '.join(map(_python, calls))}]<|python_end|>"),
    "mistral": ("mistral", _mistral),
    "mistral, with ids": ("mistral", _mistral_with_ids),
    "mistral, list": ("mistral-list", lambda calls: f"[TOOL_CALLS] {_list(calls)}"),
    "lfm2": ("lfm2", lambda calls: f"<|tool_call_start|>[{', '.join(map(_python, calls))}]<|tool_call_end|>"),
    "deepseek-r1": ("deepseek", _deepseek_r1),
    "deepseek-v3": ("deepseek", _deepseek_v3),
    "granite": ("granite", lambda calls: f"<|tool_call|>{_list(calls)}"),
    "phi-4": ("phi-4", lambda calls: f"<|tool_call|>{_list(calls)}<|/tool_call|>"),
    "gemma, Python": ("gemma", lambda calls: "```tool_code\n" + "\n".join(map(_python, calls)) + "\n```"),
    "gemma, printed": (
        "gemma",
        lambda calls: "```tool_code\n" + "".join(f"print({_python(call)})\n" for call in calls) + "```",
    ),
    "gemma, JSON": ("gemma", lambda calls: f"```json\n{_list(calls, 'parameters')}\n```"),
    "gemma, bare": ("gemma", lambda calls: f"[{', '.join(map(_python, calls))}]"),
    "gemma4": ("gemma4", _gemma4),
    "functiongemma": ("functiongemma", _functiongemma),
    "harmony": ("harmony", _harmony),
    "unknown": ("json", lambda calls: _list(calls)),
}
"""Form -> (row of the table, how its models write these calls)."""
