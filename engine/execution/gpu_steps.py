"""GpuSteps: runs the scheduler's batches on a GPU. State stays there; a step that repeats is one graph replay.

    launch(batch):  differences -> DeviceRows;  inputs of the step, unless it repeats the one before;
                    masks of constrained rows -> DeviceRows;
                    replay a graph, or launch the kernels;  tokens -> pinned memory, behind an event
    result():       wait for the event

A step is two segments: rows that bring one token and sample, and all others; `step_shapes` rounds both up to sizes that
come again. The first step of a size runs kernel by kernel, which compiles what must be compiled; its graph is captured
while the device still computes, or, of a step that keeps the device busy anyway, when it comes again. While nobody
waits, `prepare` captures what will be asked for.

Where all rows of a step have the same LoRA adapter, a graph holds that, too; steps in which they differ run kernel by
kernel.

A graph reads its inputs at fixed places of one buffer (`step_inputs`). In a step of one-token rows the kernel that
writes the tokens also moves the positions on, so while the same rows decode, nothing is sent to the device at all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch

from engine.execution.device_rows import DeviceRows
from engine.execution.kv_cache import KVCache
from engine.execution.step_inputs import StepInputs
from engine.execution.step_results import DeviceHandle, StepOutputs
from engine.execution.step_shapes import SEVERAL, StepShape, StepSizes
from engine.kernels.decode_attention import Workspace
from engine.kernels.launch import num_processors
from engine.kernels.logprobs import LogprobWorkspace, logprobs
from engine.kernels.sampling import SamplingWorkspace, sample_tokens
from engine.kernels.step_end import step_end
from engine.kernels.tiles import has_long_row
from engine.messages import Load
from engine.models.decoder import Decoder
from engine.models.device_decoder import DeviceDecoder, DeviceState
from engine.models.lora import Adapters, AdapterTokens
from engine.scheduling.batch import RowStep, ScheduledBatch, TokenMasks

Tensor = torch.Tensor

LOADED_SIZES = (1, 2, 4)
"""Rows of the decode graphs that are captured before the first request."""
MAX_LARGE_GRAPHS = 96
"""Graphs of steps that keep the device busy for long; their launches can be hidden, so not all sizes need one."""
MAX_ADAPTER_GRAPHS = 48
"""Graphs of steps of one adapter, for all adapters together: each has all sizes for itself."""
SAMPLED_ROWS = 320
"""Rows of logits that are sampled at once: bounds the scratch memory."""


class GpuSteps:
    """The execution of steps over one KV cache."""

    def __init__(
        self,
        decoder: Decoder,
        kv_cache: KVCache,
        max_context: int,
        load: Load,
        device: torch.device,
        adapters: Adapters,
    ) -> None:
        config = decoder.config
        self._sizes = StepSizes(
            load.max_num_seqs, max(load.max_num_batched_tokens, load.max_num_seqs), pads=load.use_graphs
        )
        self._captures = load.use_graphs and device.type == "cuda"
        self.stream = _stream(device) if device.type == "cuda" else None
        self.rows = DeviceRows(
            load.max_num_seqs, max_context, len(config.kv_groups), kv_cache.block_size, device, config.vocab_size
        )
        state = DeviceState(
            self.rows.tokens,
            self.rows.block_tables,
            kv_cache.layers,
            kv_cache.scales,
            Workspace.for_steps(load.max_num_seqs, config.num_heads, config.num_kv_heads, config.head_dim, device),
        )
        self._pdl = load.use_pdl
        self._model = DeviceDecoder(decoder, state, pdl=load.use_pdl)
        self._inputs = StepInputs(self._sizes, device)
        sampled = min(SAMPLED_ROWS, load.max_num_seqs + self._sizes.max_padding_rows)
        self._sampling = SamplingWorkspace(sampled, config.vocab_size, device)
        self._logprobs = LogprobWorkspace(sampled, config.vocab_size, device)
        self._outputs = StepOutputs(load.max_num_seqs, load.run_ahead + 2, device)
        self._num_logprobs: list[int | None] = [None] * load.max_num_seqs  # by row, as the next
        self._needs_logits = [False] * load.max_num_seqs
        self._adapter_of_row = [0] * load.max_num_seqs
        self._adapters = adapters
        self._device = device
        self._adapted: tuple[AdapterTokens | None, AdapterTokens | None] = None, None
        """Of the newest step: which tokens, and which of those that sample, have an adapter."""
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._num_large_graphs = 0
        self._seen: set[StepShape] = set()
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None
        self._expected = self._sizes.expected()
        self._num_processors, self._num_kv_heads = num_processors(device), config.num_kv_heads
        self._longest = 0  # length of the longest row that decodes
        self._last_rows: list[int] = []  # of the step before, where that was of one-token rows only
        self._last_shape: StepShape | None = None
        if self.stream is not None:  # what was zeroed above, and the weights, belong to another stream until now
            self.stream.wait_stream(torch.cuda.current_stream(device))

    # ---- a step

    def launch(self, batch: ScheduledBatch, masks: TokenMasks | None = None) -> DeviceHandle:
        """Queues a step on the device, once the masks of its constrained rows are there.

        Returns:
            A handle; results are taken in order, and at most `Load.run_ahead` + 1 steps are in flight.
        """
        with torch.cuda.stream(self.stream):
            if masks is not None:
                self.rows.write_masks(masks.rows, masks.words())
            return self._launch(batch)

    def _launch(self, batch: ScheduledBatch) -> DeviceHandle:
        if batch.is_repeat and self._last_shape is not None:
            self.rows.apply((), batch.appended)
            self._longest += 1
            shape = replace(self._last_shape, has_long_row=self._has_long_row(len(batch.steps)))
            return self._run(shape, batch.steps, None)
        for admission in batch.admitted:
            params = admission.params
            self._adapter_of_row[admission.row] = admission.adapter
            self._num_logprobs[admission.row] = params.logprobs
            self._needs_logits[admission.row] = (
                not params.is_greedy
                or bool(params.logit_bias or params.needs_history or params.logprobs is not None)
                or admission.is_constrained
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

    def _prepare_decode(self, batch: ScheduledBatch, steps: Sequence[RowStep]) -> StepShape:
        """Inputs of a step in which each row brings one token."""
        rows = [step.row for step in steps]
        is_greedy = not any(self._needs_logits[row] for row in rows)
        self._longest = max(step.start for step in steps) + 1
        adapter = self._adapt(steps, ())
        shape = self._sizes.decode(
            len(rows), is_greedy=is_greedy, has_long_row=self._has_long_row(len(rows)), adapter=adapter
        )
        if batch.admitted or rows != self._last_rows or shape != self._last_shape:
            self._inputs.write_decodes(shape, steps)
        self._last_rows, self._last_shape = rows, shape
        return shape

    def _prepare_mixed(self, decodes: Sequence[RowStep], others: Sequence[RowStep]) -> StepShape:
        """Inputs of any other step."""
        self._last_rows, self._last_shape = [], None
        num_tokens = sum(step.num_tokens for step in others)
        sampling = [*decodes, *(step for step in others if step.samples)]
        is_greedy = not any(self._needs_logits[step.row] for step in sampling)
        self._longest = max((step.start for step in decodes), default=0) + 1
        shape = self._sizes.mixed(
            len(decodes),
            num_tokens,
            len(others),
            is_greedy=is_greedy,
            has_long_row=self._has_long_row(len(decodes)),
            adapter=self._adapt(decodes, others),
        )
        self._inputs.write_mixed(shape, decodes, others)
        return shape

    def _adapt(self, decodes: Sequence[RowStep], others: Sequence[RowStep]) -> int:
        """Finds which tokens of a step have an adapter, and gives what StepShape says of that.

        Where all rows have the same, its products take all tokens, padding too, and a graph can hold them.
        """
        self._adapted = None, None
        if not self._adapters:
            return 0
        steps = [*decodes, *others]
        numbers = [self._adapter_of_row[step.row] for step in steps]
        if not any(numbers):
            return 0
        counts = [step.num_tokens for step in steps]
        tokens = self._adapters.tokens(numbers, counts, self._device)
        if len(set(numbers)) == 1:
            self._adapted = tokens, tokens
            return numbers[0]
        sampling = [self._adapter_of_row[step.row] for step in (*decodes, *(s for s in others if s.samples))]
        self._adapted = tokens, self._adapters.tokens(sampling, None, self._device)
        return SEVERAL

    def _has_long_row(self, num_rows: int) -> bool:
        return num_rows > 0 and has_long_row(self._num_processors, num_rows, self._num_kv_heads, self._longest)

    # ---- running it

    def _run(self, shape: StepShape, sampling: Sequence[RowStep], places: Sequence[int] | None) -> DeviceHandle:
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
        if compute is not None and self._deserves_graph(shape):
            self._capture(shape, compute)
        return handle

    def _deserves_graph(self, shape: StepShape) -> bool:
        """Whether to capture a step that has just run without a graph: a large one only if it came before."""
        if not self._captures or not shape.is_rounded:
            return False
        if shape.adapter and sum(bool(known.adapter) for known in self._graphs) >= MAX_ADAPTER_GRAPHS:
            return False
        if shape.is_small:
            return True
        if shape in self._seen:
            return self._num_large_graphs < MAX_LARGE_GRAPHS
        self._seen.add(shape)
        return False

    def _capture(self, shape: StepShape, compute: Callable[[], None]) -> None:
        """Captures what has just run. Not by `torch.cuda.graph`, which waits for the device and collects garbage.

        A capture needs memory of its own. Where there is none, the steps go on without any more graphs.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.inference_mode():
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    compute()
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            self._captures = False
            sys.stderr.write(f"engine: no more CUDA graphs are captured, steps are slower without: {error}\n")
            return
        self._graphs[shape] = graph
        self._num_large_graphs += not shape.is_small

    def forget_adapter(self, adapter: int) -> None:
        """Drops the graphs that read an adapter; no step may be in flight."""
        for shape in [shape for shape in self._graphs if shape.adapter == adapter]:
            del self._graphs[shape]
            self._num_large_graphs -= not shape.is_small
        self._seen = {shape for shape in self._seen if shape.adapter != adapter}
        self._last_rows, self._last_shape, self._adapted = [], None, (None, None)

    # ---- ahead of requests

    def warm_up(self) -> None:
        """Compiles what the first requests need and captures the smallest decode graphs."""
        for size in LOADED_SIZES:
            if size <= self._sizes.max_rows:
                self._rehearse(self._sizes.decode(size, is_greedy=True, has_long_row=False))

    def prepare(self) -> bool:
        """Captures the next graph that is missing, and compiles what it needs; no step may be in flight.

        Returns:
            Whether there was one.
        """
        if not self._captures:
            return False
        shape = next((shape for shape in self._expected if shape not in self._graphs), None)
        if shape is None:
            return False
        self._seen.add(shape)
        self._rehearse(shape)
        return True

    def _rehearse(self, shape: StepShape) -> None:
        """Runs a step of padding only, which leaves the rows as they are."""
        self._last_rows, self._last_shape = [], None
        with torch.cuda.stream(self.stream):
            self._inputs.write_padding(shape)
            self._run(shape, (), None)

    # ---- the kernels of a step

    def _computation(self, shape: StepShape) -> Callable[[], None]:
        """Launches every kernel of a step of this shape; inputs, state and outputs are at fixed places."""
        outputs, model = self._outputs, self._model
        step = self._inputs.step(shape, *(self._adapted if shape.adapter else (None, None)))
        rows, positions = self._inputs.sampled(shape)

        def compute() -> None:
            if shape.is_greedy and model.finds_candidates(shape.num_decodes, shape.num_tokens):
                values, candidates = model.candidates(step)
                token_ids = outputs.token_ids[: shape.num_decodes]
                step_end(values, candidates, rows, positions, self.rows.tokens, token_ids, pdl=self._pdl)
            else:
                self._sample(model.logits(step), rows, positions, shape)

        return compute

    def _sample(self, logits: Tensor, rows: Tensor, positions: Tensor, shape: StepShape) -> None:
        """Chooses the tokens, some rows at a time."""
        outputs = self._outputs
        for first in range(0, len(rows), self._sampling.max_rows):
            part = slice(first, min(first + self._sampling.max_rows, len(rows)))
            sample_tokens(
                logits[part], rows[part], positions[part], self.rows.tokens, self.rows.sampling, self._sampling,
                outputs.token_ids[part], advance=shape.is_decode,
            )  # fmt: skip
            if not shape.is_greedy:
                logprobs(
                    logits[part], rows[part], self.rows.sampling, outputs.token_ids[part], self._logprobs,
                    outputs.chosen[part], outputs.top[part], outputs.top_ids[part],
                )  # fmt: skip


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all steps of this process: the library keeps memory for each stream that it has ever seen."""
    return torch.cuda.Stream(device)
