"""Tokenizers and detokenizers. No torch."""
