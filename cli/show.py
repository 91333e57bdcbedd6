"""`hob show`: what a model is, as sections for a person or as one raw text for a file.

The sections, their order and their indents are Ollama's. Pure but for the command at the top: the prompt loop's `/show`
calls the same functions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from cli.connection import connected, load_settings
from cli.errors import UsageError
from cli.human import human_number
from cli.table import table
from daemon.api import ShowResponse

TEXT_COLUMNS = 100
"""Widest line of a system message or a licence that the sections show."""
TEXT_LINES = 2
ARRAY_COLUMNS = 10
PARTS = ("license", "modelfile", "parameters", "system", "template")


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    license_: Annotated[bool, typer.Option("--license", help="Print the license.")] = False,
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Print the Modelfile.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Print the parameters.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print the template.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Print the system message.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also list its metadata and tensors.")] = False,
) -> None:
    """Show what a model is. All that matters, or one part of it as it is stored."""
    given = {
        "license": license_, "modelfile": modelfile, "parameters": parameters, "system": system, "template": template
    }  # fmt: skip
    asked = [part for part in PARTS if given[part]]
    if len(asked) > 1:
        raise UsageError(
            "only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified"
        )
    with connected(load_settings()) as client:
        answer = client.show(model, verbose=verbose)
    sys.stdout.write(part_text(answer, asked[0]) if asked else sections(answer, verbose=verbose))


def part_text(answer: ShowResponse, part: str) -> str:
    """One part as it is; the texts that end in the middle of a line get a newline, system and template do not."""
    text: str = getattr(answer, part)
    return text if part in ("system", "template") else text + "\n"


def sections(answer: ShowResponse, *, verbose: bool = False) -> str:
    """Everything that a person wants to know, section by section."""
    return "".join(
        f"  {title}\n{table([['', *row] for row in rows])}\n" for title, rows in _sections(answer, verbose) if rows
    )


def _sections(answer: ShowResponse, verbose: bool) -> Iterator[tuple[str, Sequence[Sequence[str]]]]:
    yield "Model", _model_rows(answer)
    yield "Capabilities", [[capability] for capability in answer.capabilities]
    yield "Parameters", [line.split() for line in answer.parameters.splitlines() if line.strip()]
    if verbose:
        yield "Metadata", [[key, metadata_value(answer.model_info[key])] for key in sorted(answer.model_info)]
        yield "Tensors", [[tensor.name, tensor.type, str(tensor.shape)] for tensor in answer.tensors]
    yield "System", _text_rows(answer.system)
    yield "License", _text_rows(answer.license)


def _model_rows(answer: ShowResponse) -> list[list[str]]:
    info, details = answer.model_info, answer.details
    architecture = info.get("general.architecture", details.family)
    count = info.get("general.parameter_count")
    size = details.parameter_size or (human_number(int(count)) if count else "")
    context = info.get(f"{architecture}.context_length", details.context_length)
    embedding = info.get(f"{architecture}.embedding_length", details.embedding_length)
    rows = [
        ["architecture", str(architecture)],
        ["parameters", size],
        ["context length", str(context or "")],
        ["embedding length", str(embedding or "")],
        ["quantization", details.quantization_level],
    ]
    return [row for row in rows if row[1]]


def metadata_value(value: Any) -> str:
    """A value of the metadata on one line; of an array only as much as fits ten columns."""
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, list):
        return str(value)
    shown: list[str] = []
    used = 0
    for item in value:
        text = metadata_value(item)
        if shown and used + len(text) > ARRAY_COLUMNS:
            return f"[{', '.join(shown)}, ...+{len(value) - len(shown)} more]"
        shown.append(text)
        used += len(text) + 2
    return f"[{', '.join(shown)}]"


def _text_rows(text: str) -> list[list[str]]:
    """The first lines that say something, and a mark where there are more."""
    lines = [line.strip()[:TEXT_COLUMNS] for line in text.splitlines() if line.strip()]
    return [[line] for line in lines[:TEXT_LINES]] + ([["..."]] if len(lines) > TEXT_LINES else [])
