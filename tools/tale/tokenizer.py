"""Train tale's tokenizer: byte-level BPE on generated text, with the template's marks as added tokens.

Text is split as Qwen2 does it (each digit alone, words with their leading space), without normalisation: every text comes
back byte for byte. Run: `python -m tools.tale.tokenizer`.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.tale.dialogues import draw_document
from tools.tale.stories import made_up_word

VOCAB_SIZE = 4096
SEED = 7
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # in the text that a user may see, hence not special
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def texts(count: int) -> Iterator[str]:
    """Generated documents, and made-up words so that the pieces of unknown words get tokens of their own."""
    rng = random.Random(SEED)
    for _ in range(count):
        yield "".join(segment.text for segment in draw_document(rng, 512))
        yield " ".join(made_up_word(rng) for _ in range(4))


def train(count: int) -> Tokenizer:
    """Train on `count` documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(MARKS),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(count), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKS])
    return tokenizer


def main() -> None:
    """Write tokenizer.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("registry/builtin/tale/tokenizer.json"))
    parser.add_argument("--documents", type=int, default=30_000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = train(arguments.documents)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.out))
    logging.info("%s: %d tokens", arguments.out, tokenizer.get_vocab_size())


if __name__ == "__main__":
    main()
