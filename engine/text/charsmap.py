"""Charsmap: SentencePiece's compiled normalisation (NFKC and the like): the longest match from the left is replaced.

    uint32 size of the trie in bytes, the trie (darts-clone, uint32 units), replacements, each ended by a zero byte

A trie's value is the offset of the replacement. `tokenizers` has a normaliser of the same name that walks over grapheme
clusters instead and loses characters of some; ids would then differ from those the model was trained with.
Sources: sentencepiece src/normalizer.cc; darts-clone include/darts.h.
"""

from __future__ import annotations

import struct

from engine.text.vocabulary import TokenizerError

MAX_REMEMBERED = 1 << 14


class Charsmap:
    """Normalises text by a compiled map; an empty map changes nothing."""

    def __init__(self, data: bytes) -> None:
        """Raises TokenizerError where the map's sizes do not fit together."""
        trie_bytes = int.from_bytes(data[:4], "little") if data else 0
        if data and (len(data) < 4 or trie_bytes % 4 or not 4 <= trie_bytes <= len(data) - 4):
            raise TokenizerError("the vocabulary's precompiled_charsmap is shorter than it says")
        self._units = struct.unpack_from(f"<{trie_bytes // 4}I", data, 4) if data else ()
        self._replacements = data[4 + trie_bytes :]
        self._remembered: dict[str, str] = {}

    def normalize(self, text: str) -> str:
        """Raises TokenizerError where a match leads outside the replacements or to no UTF-8."""
        if not self._units:
            return text
        known = self._remembered.get(text)
        if known is not None:
            return known
        data, position, out = text.encode(), 0, bytearray()
        while position < len(data):
            size, replacement = self._longest_match(data, position)
            if size == 0:
                size = _character_bytes(data[position])
                replacement = data[position : position + size]
            out += replacement
            position += size
        try:
            normal = out.decode()
        except UnicodeDecodeError as error:
            raise TokenizerError(
                "the vocabulary's precompiled_charsmap replaces text by bytes that are no UTF-8"
            ) from error
        if len(text) <= 64 and len(self._remembered) < MAX_REMEMBERED:
            self._remembered[text] = normal
        return normal

    def _longest_match(self, data: bytes, start: int) -> tuple[int, bytes]:
        """(bytes matched, what replaces them); 0 where nothing matches."""
        units = self._units
        node = _offset(units[0])
        matched, value = 0, 0
        for position in range(start, len(data)):
            node ^= data[position]
            if node >= len(units) or units[node] & 0x800000FF != data[position]:
                break
            unit = units[node]
            node ^= _offset(unit)
            if unit >> 8 & 1 and node < len(units):  # a replacement is stored here
                matched, value = position + 1 - start, units[node] & 0x7FFFFFFF
        if matched == 0:
            return 0, b""
        end = self._replacements.find(0, value)
        if end < 0:
            raise TokenizerError("the vocabulary's precompiled_charsmap points outside its replacements")
        return matched, self._replacements[value:end]


def _offset(unit: int) -> int:
    """Distance to a unit's children, in the packing of darts-clone: 21 bits, times 256 where bit 9 is set."""
    return unit >> 10 << ((unit & 0x200) >> 6)


def _character_bytes(first: int) -> int:
    """Length of the UTF-8 character that starts with this byte."""
    return 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
