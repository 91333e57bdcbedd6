"""GpuSteps: runs the scheduler's batches on a GPU. State stays there; a step that repeats is one graph replay.

    launch(batch):  differences -> DeviceRows;  inputs of the step, unless it repeats the one before;
                    replay a graph, or launch the kernels;  tokens -> pinned memory, behind an event
    result():       wait for the event

A step is two segments: rows that bring one token and sample (padded to a size that has a graph), and all others. Steps
of the first kind alone, and short prompts alone, are graphs; what mixes the two is launched kernel by kernel, because
there the device has enough to do while the host does it. The first step of a size runs kernel by kernel, which compiles
what must be compiled; its graph is captured while the device still computes.

A graph reads its inputs at fixed places of one buffer. In a step of one-token rows the kernel that writes the tokens
also moves the positions on, so while the same rows decode, nothing is sent to the device at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from engine.execution.device_rows import DeviceRows
from engine.execution.kv_cache import KVCache
from engine.execution.pinned import PinnedRing
from engine.execution.step_results import DeviceHandle, StepOutputs
from engine.kernels.launch import num_processors
from engine.kernels.logprobs import LogprobWorkspace, logprobs
from engine.kernels.sampling import SamplingWorkspace, sample_tokens
from engine.kernels.step_end import step_end
from engine.kernels.tiles import has_long_row
from engine.messages import Load
from engine.models.decoder import Decoder
from engine.models.device_decoder import DeviceDecoder, DeviceState, DeviceStep, PrefillRows, attention_workspace
from engine.scheduling.batch import RowStep, ScheduledBatch

Tensor = torch.Tensor

DECODE_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Rows of decode graphs; beyond, multiples of 64."""
PREFILL_SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Tokens of prefill graphs."""
GRAPH_PREFILL_ROWS = 4
"""Rows of prompts that a graph has room for."""
LOADED_SIZES = (1, 2, 4)
"""Decode graphs that are captured before the first request."""
SAMPLED_ROWS = 256
"""Rows of logits that are sampled at once: bounds the scratch memory."""


@dataclass(frozen=True)
class _Shape:
    """What tells one graph from another."""

    num_decodes: int
    num_tokens: int
    """Of the rows that bring more than one."""
    num_rows: int
    """That bring more than one token."""
    is_greedy: bool
    """No row needs more of the logits than their maximum."""
    has_long_row: bool = False
    """A row that decodes is much longer than most."""


class _Inputs:
    """Where the inputs of a step lie in one int32 buffer. Decode rows use the first two parts only."""

    def __init__(self, max_tokens: int, max_rows: int, device: torch.device) -> None:
        widths = [max_tokens, max_tokens, max_rows, max_rows + 1, max_rows, max_rows, max_rows, max_rows]
        # Each part begins at a multiple of 16 bytes: Triton compiles a kernel anew for addresses that do not.
        starts = np.cumsum([0, *(-(-width // 4) * 4 for width in widths)]).tolist()
        self.buffer = torch.full((starts[-1],), -1, dtype=torch.int32, device=device)
        self.parts = [slice(start, start + width) for start, width in zip(starts, widths, strict=False)]
        (
            self.rows, self.positions, self.prefill_rows, self.cu_seqlens, self.starts,
            self.selection, self.sample_rows, self.sample_positions,
        ) = (self.buffer[part] for part in self.parts)  # fmt: skip
        self._ring = PinnedRing(starts[-1], device)

    def send(self, parts: Sequence[Sequence[int] | npt.NDArray[np.int64]]) -> None:
        """Writes the beginnings of the first parts of the buffer."""
        with self._ring.slot() as host:
            array = host.numpy()
            for part, values in zip(self.parts, parts, strict=False):
                array[part.start : part.start + len(values)] = values
            if len(parts) == 2:  # of a decode step: two short copies instead of a long one
                for part, values in zip(self.parts, parts, strict=False):
                    there = slice(part.start, part.start + len(values))
                    self.buffer[there].copy_(host[there], non_blocking=True)
            else:
                stop = self.parts[len(parts) - 1].stop
                self.buffer[:stop].copy_(host[:stop], non_blocking=True)


class GpuSteps:
    """The execution of steps over one KV cache."""

    def __init__(
        self,
        decoder: Decoder,
        kv_cache: KVCache,
        max_context: int,
        load: Load,
        device: torch.device,
    ) -> None:
        config = decoder.config
        self._device = device
        self._max_rows = load.max_num_seqs
        self._uses_graphs = load.use_graphs and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.rows = DeviceRows(load.max_num_seqs, max_context, len(config.kv_groups), kv_cache.block_size, device)
        state = DeviceState(
            self.rows.tokens,
            self.rows.block_tables,
            kv_cache.layers,
            attention_workspace(config, load.max_num_seqs, device),
        )
        self._pdl = load.use_pdl
        self._model = DeviceDecoder(decoder, state, pdl=load.use_pdl)
        self._max_tokens = max(load.max_num_batched_tokens, load.max_num_seqs)
        # A prompt's tokens are rounded up, by at most 128.
        self._inputs = _Inputs(self._max_tokens + 128, load.max_num_seqs, device)
        sampled = min(SAMPLED_ROWS, load.max_num_seqs)
        self._sampling = SamplingWorkspace(sampled, config.vocab_size, device)
        self._logprobs = LogprobWorkspace(sampled, config.vocab_size, device)
        self._outputs = StepOutputs(load.max_num_seqs, load.run_ahead + 2, device)
        self._num_logprobs: list[int | None] = [None] * load.max_num_seqs  # by row, as the next
        self._needs_logits = [False] * load.max_num_seqs
        self._graphs: dict[_Shape, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._uses_graphs else None
        self._expected = self._expected_shapes()
        self._num_processors, self._num_kv_heads = num_processors(device), config.num_kv_heads
        self._longest = 0  # length of the longest row that decodes
        self._last_rows: list[int] = []  # of the step before, where that was of one-token rows only
        self._last_shape: _Shape | None = None

    # ---- a step

    def launch(self, batch: ScheduledBatch) -> DeviceHandle:
        """Queues a step on the device.

        Returns:
                A handle; results are taken in order, and at most `Load.run_ahead` + 1 steps are in flight.
        """
        with torch.cuda.stream(self._stream):
            return self._launch(batch)

    def _launch(self, batch: ScheduledBatch) -> DeviceHandle:
        if batch.is_repeat and self._last_shape is not None:
            self.rows.apply((), batch.appended)
            self._longest += 1
            shape = replace(self._last_shape, has_long_row=self._has_long_row(len(batch.steps)))
            return self._run(shape, batch.steps, None)
        for admission in batch.admitted:
            params = admission.params
            self._num_logprobs[admission.row] = params.logprobs
            self._needs_logits[admission.row] = not params.is_greedy or bool(
                params.logit_bias or params.needs_history or params.logprobs is not None
            )
        self.rows.apply(batch.admitted, batch.appended)
        decodes = [step for step in batch.steps if step.num_tokens == 1 and step.samples]
        if len(decodes) == len(batch.steps):
            return self._run(self._prepare_decode(batch, decodes), decodes, None)
        others = [step for step in batch.steps if not (step.num_tokens == 1 and step.samples)]
        shape = self._prepare_mixed(decodes, others)
        # Results of prompts lie behind the decodes; those that do not sample leave none.
        prompts = [step for step in others if step.samples]
        places = [*range(len(decodes)), *range(shape.num_decodes, shape.num_decodes + len(prompts))]
        return self._run(shape, decodes + prompts, places)

    def _prepare_decode(self, batch: ScheduledBatch, steps: Sequence[RowStep]) -> _Shape:
        """Inputs of a step in which each row brings one token."""
        rows = [step.row for step in steps]
        size = self._decode_size(len(rows))
        is_greedy = not any(self._needs_logits[row] for row in rows)
        self._longest = max(step.start for step in steps) + 1
        shape = _Shape(size, 0, 0, is_greedy, self._has_long_row(len(rows)))
        if batch.admitted or rows != self._last_rows or shape != self._last_shape:
            padding = [-1] * (size - len(rows))
            self._inputs.send([rows + padding, [step.start for step in steps] + padding])
        self._last_rows, self._last_shape = rows, shape
        return shape

    def _prepare_mixed(self, decodes: Sequence[RowStep], others: Sequence[RowStep]) -> _Shape:
        """Inputs of any other step: the decodes first, behind them the tokens of the others, row by row."""
        self._last_rows, self._last_shape = [], None
        counts = np.array([step.num_tokens for step in others])
        starts = np.array([step.start for step in others])
        num_tokens, num_rows = int(counts.sum()), len(others)
        if self._uses_graphs and not decodes and num_tokens <= PREFILL_SIZES[-1] and num_rows <= GRAPH_PREFILL_ROWS:
            padded_tokens = next(size for size in PREFILL_SIZES if size >= num_tokens)
            padded_rows = min(GRAPH_PREFILL_ROWS, self._max_rows)
        else:
            padded_tokens, padded_rows = num_tokens, num_rows
        num_decodes = len(decodes)
        ends = counts.cumsum()
        rows = np.full(num_decodes + padded_tokens, -1)
        positions = np.zeros(num_decodes + padded_tokens, dtype=np.int64)
        rows[:num_decodes] = [step.row for step in decodes]
        positions[:num_decodes] = [step.start for step in decodes]
        row_ids = np.array([step.row for step in others])
        rows[num_decodes : num_decodes + num_tokens] = np.repeat(row_ids, counts)
        within = np.arange(num_tokens) - np.repeat(ends - counts, counts)
        positions[num_decodes : num_decodes + num_tokens] = within + np.repeat(starts, counts)
        cu_seqlens = np.full(padded_rows + 1, num_tokens)
        cu_seqlens[0] = 0
        cu_seqlens[1 : num_rows + 1] = ends
        # Every decode is sampled, and of the others as many as there are rows; those that do not sample are padding.
        samples = np.array([step.samples for step in others])
        num_samples = num_decodes + padded_rows
        selection = np.zeros(num_samples, dtype=np.int64)
        sample_rows = np.full(num_samples, -1)
        sample_positions = np.zeros(num_samples, dtype=np.int64)
        selection[:num_decodes] = np.arange(num_decodes)
        sample_rows[:num_decodes] = rows[:num_decodes]
        sample_positions[:num_decodes] = positions[:num_decodes]
        chosen = slice(num_decodes, num_decodes + int(samples.sum()))
        selection[chosen] = num_decodes + ends[samples] - 1
        sample_rows[chosen] = row_ids[samples]
        sample_positions[chosen] = (starts + counts - 1)[samples]
        prefill_rows = np.full(padded_rows, -1)
        prefill_rows[:num_rows] = row_ids
        prefill_starts = np.zeros(padded_rows, dtype=np.int64)
        prefill_starts[:num_rows] = starts
        self._inputs.send(
            [rows, positions, prefill_rows, cu_seqlens, prefill_starts, selection, sample_rows, sample_positions]
        )
        is_greedy = not any(self._needs_logits[row] for row in sample_rows.tolist() if row >= 0)
        self._longest = max((step.start for step in decodes), default=0) + 1
        return _Shape(num_decodes, padded_tokens, padded_rows, is_greedy, self._has_long_row(num_decodes))

    def _has_long_row(self, num_rows: int) -> bool:
        return num_rows > 0 and has_long_row(self._num_processors, num_rows, self._num_kv_heads, self._longest)

    def _decode_size(self, num_rows: int) -> int:
        if not self._uses_graphs:
            return num_rows
        size = next((size for size in DECODE_SIZES if size >= num_rows), -(-num_rows // 64) * 64)
        return min(size, self._max_rows)

    # ---- running it

    def _run(self, shape: _Shape, sampling: Sequence[RowStep], places: Sequence[int] | None) -> DeviceHandle:
        """Queues a step and the copy of its results; captures its graph where there should be one.

        Args:
            sampling: the steps that get a token.
            places: where their results lie; None: in their order.
        """
        graph = self._graphs.get(shape)
        compute = None
        if graph is not None:
            graph.replay()
        else:
            compute = self._computation(shape)
            with torch.inference_mode():
                compute()
        num_logprobs = None
        if not shape.is_greedy:
            num_logprobs = [self._num_logprobs[step.row] for step in sampling]
        handle = self._outputs.take(sampling, places, num_logprobs)
        if compute is not None and self._is_graph(shape):
            self._capture(shape, compute)
        return handle

    def _is_graph(self, shape: _Shape) -> bool:
        """Whether steps of this shape are worth a graph: those whose sizes were rounded up to one."""
        if not self._uses_graphs:
            return False
        return shape.num_tokens == 0 or (
            shape.num_decodes == 0
            and shape.num_tokens in PREFILL_SIZES
            and shape.num_rows == min(GRAPH_PREFILL_ROWS, self._max_rows)
        )

    def _capture(self, shape: _Shape, compute: Callable[[], None]) -> None:
        """Captures what has just run. Not by `torch.cuda.graph`, which waits for the device and collects garbage."""
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                compute()
            finally:
                graph.capture_end()
        self._graphs[shape] = graph

    # ---- ahead of requests

    def warm_up(self) -> None:
        """Compiles what the first requests need and captures the smallest decode graphs."""
        for size in LOADED_SIZES:
            if size <= self._max_rows:
                self._rehearse(_Shape(size, 0, 0, is_greedy=True))

    def prepare(self) -> bool:
        """Captures the next graph that is missing, and compiles what it needs; no step may be in flight.

        Returns:
            Whether there was one.
        """
        shape = next((shape for shape in self._expected if shape not in self._graphs), None)
        if shape is None:
            return False
        self._rehearse(shape)
        if not self._is_graph(shape):
            self._expected.remove(shape)
        return True

    def _expected_shapes(self) -> list[_Shape]:
        """What requests will ask for, the likeliest first; one is no graph, but has kernels of its own to compile."""
        if not self._uses_graphs:
            return []
        sizes = [*(size for size in DECODE_SIZES if size < self._max_rows), self._decode_size(self._max_rows)]
        rows = min(GRAPH_PREFILL_ROWS, self._max_rows)
        prompts = [size for size in PREFILL_SIZES if size <= self._max_tokens]
        shapes = [_Shape(size, 0, 0, is_greedy) for size in sizes[:4] for is_greedy in (False, True)]
        shapes += [_Shape(0, size, rows, is_greedy) for size in prompts for is_greedy in (False, True)]
        if self._max_rows > 1:
            shapes.append(_Shape(1, 17, 1, is_greedy=False))
        return shapes + [_Shape(size, 0, 0, is_greedy) for is_greedy in (False, True) for size in sizes[4:]]

    def _rehearse(self, shape: _Shape) -> None:
        """Runs a step of padding only, which leaves the rows as they are."""
        num_tokens, num_samples = shape.num_decodes + shape.num_tokens, shape.num_decodes + shape.num_rows
        nobody, zeros = [-1] * num_tokens, [0] * num_tokens
        parts: list[Sequence[int] | npt.NDArray[np.int64]] = [nobody, zeros]
        if shape.num_rows:
            empty = [0] * (shape.num_rows + 1)
            parts += [[-1] * shape.num_rows, empty, empty[1:]]
            parts += [[0] * num_samples, [-1] * num_samples, [0] * num_samples]
        with torch.cuda.stream(self._stream):
            self._inputs.send(parts)
            self._run(shape, (), None)
        self._last_rows, self._last_shape = [], None

    # ---- the kernels of a step

    def _computation(self, shape: _Shape) -> Callable[[], None]:
        """Launches every kernel of a step of this shape; inputs, state and outputs are at fixed places."""
        inputs, outputs = self._inputs, self._outputs
        num_tokens = shape.num_decodes + shape.num_tokens
        prefill, selection = None, None
        sample_rows, positions = inputs.rows[: shape.num_decodes], inputs.positions[: shape.num_decodes]
        if shape.num_tokens > 0:
            num_samples = shape.num_decodes + shape.num_rows
            prefill = PrefillRows(
                inputs.prefill_rows[: shape.num_rows],
                inputs.cu_seqlens[: shape.num_rows + 1],
                inputs.starts[: shape.num_rows],
            )
            selection = inputs.selection[:num_samples]
            sample_rows, positions = inputs.sample_rows[:num_samples], inputs.sample_positions[:num_samples]
        step = DeviceStep(
            inputs.rows[:num_tokens],
            inputs.positions[:num_tokens],
            shape.num_decodes,
            prefill,
            selection,
            shape.has_long_row,
        )
        is_decode = prefill is None

        def compute() -> None:
            if shape.is_greedy and self._model.finds_candidates(shape.num_decodes, shape.num_tokens):
                values, candidates = self._model.candidates(step)
                step_end(
                    values, candidates, sample_rows, positions, self.rows.tokens,
                    outputs.token_ids[: shape.num_decodes], pdl=self._pdl,
                )  # fmt: skip
                return
            self._sample(self._model.logits(step), sample_rows, positions, shape.is_greedy, is_decode)

        return compute

    def _sample(self, logits: Tensor, rows: Tensor, positions: Tensor, is_greedy: bool, is_decode: bool) -> None:
        """Chooses the tokens, some rows at a time."""
        outputs = self._outputs
        for first in range(0, len(rows), self._sampling.max_rows):
            part = slice(first, min(first + self._sampling.max_rows, len(rows)))
            sample_tokens(
                logits[part], rows[part], positions[part], self.rows.tokens, self.rows.sampling, self._sampling,
                outputs.token_ids[part], advance=is_decode,
            )  # fmt: skip
            if not is_greedy:
                logprobs(
                    logits[part], rows[part], self.rows.sampling, outputs.token_ids[part], self._logprobs,
                    outputs.chosen[part], outputs.top[part], outputs.top_ids[part],
                )  # fmt: skip
