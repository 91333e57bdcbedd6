"""TokenizerParts: what the readers of GGUF and Hugging Face files hand to Tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from engine.text.encoders import Encoder


@dataclass(frozen=True, kw_only=True)
class TokenizerParts:
    """A tokenizer before it is one; ids are checked to lie in the vocabulary."""

    encoder: Encoder
    bos_id: int | None = None
    eos_ids: Collection[int] = ()
    prefix_ids: Sequence[int] = ()
    """What encoding puts before a prompt."""
    suffix_ids: Sequence[int] = ()
    between_ids: Sequence[int] = ()
    """What stands between the two texts of a pair, as cross-encoders read them."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None
