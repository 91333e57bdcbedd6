"""EncoderRunner: one loaded encoder on one device, the counterpart of ModelRunner for models that do not write.

It has weights and nothing else: no KV cache, no rows, no graphs. On a GPU it computes in float16, since vectors are
compared by small differences and bfloat16 keeps three digits; on a CPU in float32. Called by the worker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from engine.embedding_queue import TextJob
from engine.encoder_config import EncoderConfig
from engine.execution.device import DTYPES, choose_device, choose_dtype, device_memory
from engine.execution.encoder_weights import OnProgress, load_encoder_weights
from engine.execution.errors import ModelTooLarge
from engine.execution.memory import usable_bytes
from engine.execution.pooled import finished, pool
from engine.messages import Load, Ready
from engine.models.encoder import Encoder, EncoderBatch, encoder_activation_bytes
from modelfiles.source import ModelSource

GPU_PASS_TOKENS = 16384
"""Texts of so many tokens fill a GPU."""


class EncoderRunner:
    """One loaded encoder on one device. An embedding_engine.Embedder."""

    def __init__(
        self, encoder: Encoder, *, device: torch.device, dtype: torch.dtype, max_pass_tokens: int, load_s: float = 0.0
    ) -> None:
        self.encoder = encoder
        self.config = encoder.config
        self.device = device
        self.dtype = dtype
        self.max_pass_tokens = max_pass_tokens
        self.load_s = load_s

    @classmethod
    def load(cls, load: Load, on_progress: OnProgress | None = None) -> EncoderRunner:
        """Loads weights.

        Args:
            on_progress: called with the bytes read so far and in all.

        Raises:
            ConfigError, SourceError, GGUFError, SafetensorsError: the files are no model that Hob runs.
            WeightsError: the tensors are not those of the configuration.
            ModelTooLarge: it does not fit.
            Unsupported: a device, type or feature is not available.
        """
        started = time.perf_counter()
        if load.num_threads > 0:
            torch.set_num_threads(load.num_threads)
        source = ModelSource({name: Path(path) for name, path in load.files.items()})
        config = EncoderConfig.from_source(source)
        device = choose_device(load.device)
        dtype = _dtype(load.dtype, device)
        max_tokens = max(load.max_num_batched_tokens, GPU_PASS_TOKENS if device.type == "cuda" else 0)
        _check_memory(config, load, dtype, device, max(max_tokens, config.max_position_embeddings))
        with torch.inference_mode():
            weights = load_encoder_weights(source, config, dtype, device, on_progress)
            encoder = Encoder(config, weights, device)
        seconds = time.perf_counter() - started
        return cls(encoder, device=device, dtype=dtype, max_pass_tokens=max_tokens, load_s=seconds)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self.config.vocab_size

    @property
    def max_text_tokens(self) -> int:
        """The longest text."""
        return self.config.max_position_embeddings

    @property
    def gives_scores(self) -> bool:
        """Whether it is a cross-encoder."""
        return self.config.is_ranker

    @property
    def ready(self) -> Ready:
        """What the worker answers to Load."""
        return Ready(
            num_blocks=0,
            block_size=0,
            weights_bytes=self.encoder.weights.num_bytes,
            kv_cache_bytes=0,
            max_context=self.config.max_position_embeddings,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            load_s=self.load_s,
        )

    @torch.inference_mode()
    def embed(self, jobs: Sequence[TextJob], max_tokens: int) -> Iterator[list[bytes | None] | None]:
        """Computes a pass, in one piece: every token of a text sees all others. See embedding_engine.Embedder."""
        batch = EncoderBatch.of([job.token_ids for job in jobs], [job.second_start for job in jobs], self.device)
        hidden = self.encoder.forward(batch)
        if self.gives_scores:
            scores = torch.sigmoid(self.encoder.scores(pool(hidden, batch.counts, "cls").to(self.dtype)))
            yield finished(scores, jobs, normalizes=False)
        else:
            pooling = self.config.pooling
            yield finished(pool(hidden, batch.counts, pooling.mode), jobs, normalizes=pooling.normalize)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return choose_dtype(name, device, 0)
    return DTYPES["float16" if device.type == "cuda" else "float32"]


def _check_memory(config: EncoderConfig, load: Load, dtype: torch.dtype, device: torch.device, max_tokens: int) -> None:
    """
    Raises:
        ModelTooLarge: weights and one pass do not fit.
    """
    weights = config.num_parameters * dtype.itemsize
    needs = weights + encoder_activation_bytes(config, max_tokens, dtype.itemsize)
    has = usable_bytes(device_memory(device), load.budget_bytes, load.overhead_bytes)
    if needs > has:
        raise ModelTooLarge("the model", needs, has, "stop other models, or choose a smaller one")
