"""Families of models: which row of the table a template or a PARSER means."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.parsers.families import FAMILIES, PASSTHROUGH, PLAIN, THINK, CallForm, Tags, family_of, parser_names

JINJA = {
    "deepseek": "DeepSeek-R1-Distill-Llama-8B llama-cpp-deepseek-r1 DeepSeek-V3.1",
    "qwen3-coder": "Qwen3-Coder",
    "functionary": "functionary-medium-v3.1",
    "glm": "GLM-4.7-Flash Laguna-S-2.1 Laguna-XS.2 Spark2.5",
    "apriel": "Apriel-1.5",
    "hermes": "Hermes-3-Llama-3.1-8B-tool_use Qwen2.5-7B-Instruct Bielik-11B-v3.0-Instruct MiMo-VL granite-4.1",
    "nemotron": "Nemotron-Nano-v2",
    "mistral": "Mistral-Small-3.2-24B-Instruct-2506 Ministral-3-14B-Reasoning-2512",
    "lfm2": "LFM2.5-8B-A1B",
    "gemma4": "gemma-4-31B-it-interleaved",
    "granite": "granite-3.3-2B-Instruct",
    "llama": "Llama-3.1-8B-Instruct Llama-3.3-70B-Instruct firefunction-v2",
    "harmony": "gpt-oss-120b",
}


def test_every_real_template_finds_its_family(data_dir: Path) -> None:
    folder = data_dir / "templates/jinja"
    for family, names in JINJA.items():
        for name in names.split():
            (path,) = folder.glob(f"*{name}.jinja")
            assert family_of(path.read_text()).name == family, name


@pytest.mark.parametrize(
    ("template", "family", "thinking"),
    [
        ("{{ .Prompt }}", "json", THINK),
        ('{{ range .ToolCalls }}<tool_call>{"name": ...}</tool_call>{{ end }}', "hermes", THINK),
        ("[TOOL_CALLS] [{{ range .ToolCalls }}{{ json . }}{{ end }}]", "mistral-list", THINK),
        ("[TOOL_CALLS]{{ .Function.Name }}[ARGS]{{ .Function.Arguments }}", "mistral", Tags("[THINK]", "[/THINK]")),
        ("<|system|>{{ .System }}<|tool|>{{ .Tools }}<|/tool|><|end|>", "phi-4", THINK),
        ("<|im_start|>system<|im_sep|>", "phi-4", THINK),
        ("<start_of_turn>user\n{{ .Prompt }}", "gemma", THINK),
        ("<|start_header_id|>user<|end_header_id|>", "llama", THINK),
        ("<|reason|>{{ .Thinking }}<|/reason|>", "json", Tags("<|reason|>", "<|/reason|>")),
        ("[A]{{- $message.Thinking -}}\n[/A]", "json", Tags("[A]", "[/A]")),
        ("{{ .Thinking }}", "json", THINK),
    ],
)
def test_templates(template: str, family: str, thinking: Tags) -> None:
    found = family_of(template)
    assert (found.name, found.thinking) == (family, thinking)


def test_parser_wins_over_the_template() -> None:
    assert family_of("<tool_call>", "harmony").form is CallForm.CHANNELS
    assert family_of("<tool_call>", "passthrough") == PASSTHROUGH
    assert family_of("<tool_call>", "one that nobody knows").name == "hermes"
    assert family_of("", "") == PLAIN


def test_the_table_is_sound() -> None:
    names = [row.name for row in FAMILIES]
    assert len(set(names)) == len(names)
    assert len(set(parser_names())) == len(parser_names())
    assert all(row.call or row.form in (CallForm.BARE, CallForm.FENCED, CallForm.CHANNELS) for row in FAMILIES)
    assert all(tag == tag.strip() for row in FAMILIES for tag in row.tags)
