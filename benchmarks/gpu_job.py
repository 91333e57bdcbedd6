"""What benchmarks/gpu.py tells the process of a section. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

MODEL_CASE = "model"
"""The log's name for writing the model, which comes before every case."""


@dataclass(frozen=True)
class Job:
    """Plain values: it travels as JSON."""

    section: str
    cases: list[str]
    log: str
    model: str
    shape: str
    device: str
    out: str | None
    peers: list[str]
    arguments: list[str]
    """The command line of gpu.py, for the report."""
