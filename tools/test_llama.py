"""Runs models that Hob has quantised in llama.cpp, beside Hob itself; writes down what came out.

    python tools/test_llama.py [--data FOLDER] [--out FILE]

Called by `make test-llama`. It needs the package `llama-cpp-python`, which builds for a quarter of an hour, so CI does
not; `PYTHONPATH` may name a folder that has it. Each model is quantised from safetensors, continued greedily by both,
and the texts are compared. llama.cpp quantises activations, too: texts of quantised models may part where two tokens
are about as likely, so a text counts as the same while its first tokens are; of F32 files all tokens have to be.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.conversion.file_types import GGUF_FILE_TYPES  # noqa: E402 -- a script finds the project by its own place
from engine.conversion.quantize import quantize_model  # noqa: E402
from engine.llm import LLM  # noqa: E402
from engine.messages import Quantize  # noqa: E402
from engine.sampling_params import SamplingParams  # noqa: E402
from modelfiles.source import ModelSource  # noqa: E402

NUM_TOKENS = 24
NUM_SAME = {"F32": NUM_TOKENS, "F16": 12, "Q8_0": 8}
"""Leading tokens that must be the same; 4 of types with fewer bits."""
PROMPT = "Once upon a time"


@dataclass(frozen=True)
class Case:
    """A model, and what to quantise it to."""

    name: str
    folder: Path
    file_types: Sequence[str]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("HOB_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default), help="folder with test models")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "test-llama.log")
    args = parser.parse_args(words)
    if find_spec("llama_cpp") is None:
        sys.stderr.write("llama-cpp-python is not installed; `pip install llama-cpp-python` builds it\n")
        return 0
    import llama_cpp

    lines = [
        f"llama-cpp-python {llama_cpp.__version__}, {datetime.datetime.now(tz=datetime.UTC).date().isoformat()}",
        f"{NUM_TOKENS} tokens, greedily, after {PROMPT!r}; same: leading tokens that llama.cpp and Hob agree on",
        "",
    ]
    num_failed = 0
    for case in cases(args.data):
        for file_type in case.file_types:
            num_same, note = compare(llama_cpp, case.folder, file_type)
            is_right = num_same >= NUM_SAME.get(file_type, 4)
            num_failed += not is_right
            lines.append(
                f"{case.name:24} {file_type:8} same {num_same:3} {'ok' if is_right else 'FAILED'} {note}".rstrip()
            )
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
    lines += ["", f"{num_failed} failed"]
    args.out.write_text("\n".join(lines) + "\n", "utf-8")
    return 1 if num_failed else 0


def cases(data: Path) -> list[Case]:
    """The built-in model in all types; test models of other architectures in a few, where they are there."""
    found = [Case("tale", ROOT / "registry" / "builtin" / "tale", [row.name for row in GGUF_FILE_TYPES.values()])]
    for name in (
        "stories3M",
        "stories260K",
        "synthetic-gemma",
        "synthetic-gemma2-swa16",
        "synthetic-qwen2",
        "synthetic-phi3",
    ):
        folder = data / "models" / name / "hf"
        if folder.is_dir():
            found.append(Case(name, folder, ("F32", "Q8_0", "Q4_K_M") if name.startswith("stories") else ("F32",)))
    return found


def compare(llama_cpp: Any, folder: Path, file_type: str) -> tuple[int, str]:
    """How many leading tokens are the same, and what went wrong otherwise."""
    files = {name: str(path) for name, path in ModelSource.from_path(folder).files.items()}
    with tempfile.TemporaryDirectory() as target:
        order = Quantize(files=files, folder=target, file_type=file_type)
        path = quantize_model(order, lambda done, total: None).files["model.gguf"]
        llm = LLM(path, device="cpu", dtype="float32", num_blocks=16)
        params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        ours = llm.generate(PROMPT, params)[0]
        try:
            theirs = llama_cpp.Llama(path, n_ctx=256, verbose=False)
        except ValueError as error:
            return 0, str(error).replace(path, "the file")
        prompt_ids = theirs.tokenize(PROMPT.encode(), add_bos=llm.tokenizer.add_bos, special=False)
        if prompt_ids != ours.prompt_ids:
            return 0, f"the prompt is {prompt_ids} there and {ours.prompt_ids} here"
        stream = theirs.generate(prompt_ids, temp=0.0, repeat_penalty=1.0)
        num_same = 0
        for expected, found in zip(ours.token_ids, stream, strict=False):
            if expected != found:
                break
            num_same += 1
        theirs.close()
        return num_same, ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
