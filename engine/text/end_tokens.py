"""Tokens that end an answer, known by their text: files often name only one of the several that a model uses.

Llama 3 ends turns with <|eot_id|> and texts with <|end_of_text|>, Qwen with <|im_end|> and <|endoftext|>, and a file
names one. Source of the list: llama.cpp src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Callable

END_TOKENS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
    # fill-in-the-middle: padding and the start of another file also mean that this one is done
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>",
    "<|file_sep|>",
)  # fmt: skip
# Where the first is an end token, the second is not: gpt-oss ends channels with <|end|>, Gemma 4 has an idle </s>.
NO_END_BESIDE = (("<|call|>", "<|end|>"), ("<|calls|>", "<|end|>"), ("<|tool_response>", "</s>"))


def end_token_ids(find: Callable[[str], int | None]) -> set[int]:
    """Ids of the end tokens of a vocabulary; `find` gives the id of a token that may be one."""
    found = {text: token_id for text in END_TOKENS if (token_id := find(text)) is not None}
    for sign, text in NO_END_BESIDE:
        if sign in found:
            found.pop(text, None)
    return set(found.values())
