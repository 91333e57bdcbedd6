"""Architectures, as rows of tables over shared layers."""
