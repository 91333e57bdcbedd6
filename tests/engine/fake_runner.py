"""FakeRunner: a model that checks how it is scheduled. The fake at the runner's seam.

It keeps the KV cache as a real runner does, in blocks reached through the rows' tables, but what it stores in a slot
is a hash of the whole text up to that position. Computing a position checks that each position it attends holds the
hash of this very text: a wrong table, a wrong position, a block given away too early or shared between different texts
fails at once, in the step that would have gone wrong. The next token is a function of the text, the seed and the
number of tokens generated, so it does not depend on batching, and outputs can be compared with those of the prompt run
alone. Of a row with a constraint it is one of those that the row's mask allows.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from engine.embedding_queue import TextJob
from engine.messages import Ready
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import RowStep, ScheduledBatch, StepResult, TokenLogprobs, TokenMasks

EMPTY = hashlib.blake2b(b"", digest_size=8).digest()


def extend_hash(before: bytes, token_id: int) -> bytes:
    """Hash of a text that is one token longer."""
    return hashlib.blake2b(before + token_id.to_bytes(8, "little"), digest_size=8).digest()


def beginning(adapter: int) -> bytes:
    """Hash of the empty text: what an adapter computes is of no use to another."""
    return EMPTY if adapter == 0 else extend_hash(EMPTY, adapter)


def next_token(text: bytes, seed: int, generation: int, vocab_size: int) -> int:
    """The fake model: the token after a text."""
    data = text + seed.to_bytes(8, "little") + (generation & (2**64 - 1)).to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little") % vocab_size


def is_repeat(batch: ScheduledBatch, before: ScheduledBatch | None) -> bool:
    """What ScheduledBatch.is_repeat says, from the batches alone."""
    return (
        before is not None
        and not batch.admitted
        and all(step.num_tokens == 1 and step.samples for step in [*before.steps, *batch.steps])
        and batch.steps == [RowStep(step.row, step.seq_id, step.start + 1, 1, True) for step in before.steps]
    )


@dataclass
class Row:
    """What a row holds."""

    seq_id: int
    token_ids: list[int]
    hashes: list[bytes]  # hashes[p] is that of token_ids[: p + 1]
    origin: int
    params: SamplingParams
    is_constrained: bool
    tables: list[list[int]]
    dead: list[int]


@dataclass
class FakeHandle:
    """A launched step: computed at once, its result held back."""

    runner: FakeRunner
    batch: ScheduledBatch
    outcome: StepResult
    reads: dict[tuple[int, int], int]  # (group, block) -> the sequence that this step reads or writes it for
    rows: dict[int, int]  # row -> sequence

    def result(self) -> StepResult:
        assert self.runner.in_flight[0] is self, "results are not asked for in the order of launch"
        self.runner.in_flight.pop(0)
        self.runner.before_result(self.batch)
        return self.outcome


@dataclass
class FakeRunner:
    """See the module. `before_result` may raise or wait."""

    num_blocks: int = 64
    block_size: int = 4
    windows: tuple[int | None, ...] = (None,)
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 64
    vocab_size: int = 50
    max_context: int = 4096
    bad_tokens: frozenset[int] = frozenset()
    """A row whose last token is one of these yields an error."""
    before_result: Callable[[ScheduledBatch], None] = lambda batch: None
    before_vectors: Callable[[Sequence[TextJob]], None] = lambda jobs: None
    in_flight: list[FakeHandle] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_unprepared: int = 0
    """Calls of `prepare` that find something to do."""

    max_adapter_files: int = 2
    """Adapters of more files fit only where no KV cache is."""

    def __post_init__(self) -> None:
        self.adapters: dict[int, dict[str, str]] = {}
        self.rows: dict[int, Row] = {}
        self.slots: list[dict[int, list[bytes | None]]] = [{} for _ in self.windows]
        self.has_kv_cache = True
        self.last_step = 0
        self.last_batch: ScheduledBatch | None = None

    @property
    def ready(self) -> Ready:
        return Ready(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            weights_bytes=1000,
            kv_cache_bytes=self.num_blocks * self.block_size,
            max_context=self.max_context,
            device="fake",
            dtype="none",
            load_s=0.0,
        )

    def has_adapter(self, adapter: int) -> bool:
        return adapter in (0, *self.adapters)

    def has_room_for(self, files: Mapping[str, str]) -> bool:
        return len(files) <= self.max_adapter_files

    def add_adapter(self, adapter: int, files: Mapping[str, str]) -> None:
        assert adapter > 0
        assert adapter not in self.adapters
        assert not self.has_kv_cache or self.has_room_for(files)
        if "broken" in files:
            raise ValueError("the adapter is of another model")
        self.adapters[adapter] = dict(files)

    def remove_adapter(self, adapter: int) -> None:
        assert not self.in_flight
        self.adapters.pop(adapter, None)

    def prepare(self) -> bool:
        assert not self.in_flight
        assert self.has_kv_cache
        has_work = self.num_unprepared > 0
        self.num_unprepared -= has_work
        return has_work

    def free_kv(self) -> None:
        assert not self.in_flight
        self.has_kv_cache = False
        self.rows.clear()

    def allocate_kv(self, num_blocks: int = 0, budget_bytes: int = 0) -> None:
        assert not self.in_flight
        self.num_blocks = num_blocks or self.num_blocks
        self.rows.clear()
        self.slots = [{} for _ in self.windows]
        self.has_kv_cache = True

    @property
    def max_text_tokens(self) -> int:
        return self.max_context

    @property
    def max_pass_tokens(self) -> int:
        return self.max_num_batched_tokens

    @property
    def gives_scores(self) -> bool:
        return False

    def embed(self, jobs: Sequence[TextJob], max_tokens: int) -> Iterator[list[bytes | None] | None]:
        """A vector of two elements: the tokens of the text and the texts of its pass. Longer texts take pieces."""
        total = sum(len(job.token_ids) for job in jobs)
        assert total <= max_tokens or len(jobs) == 1
        for _ in range(max_tokens, total, max_tokens):
            yield None
        self.before_vectors(jobs)
        yield [
            None if self.bad_tokens.intersection(job.token_ids) else struct.pack("<2f", len(job.token_ids), len(jobs))
            for job in jobs
        ]

    def launch(self, batch: ScheduledBatch, masks: TokenMasks | None = None) -> FakeHandle:
        assert self.has_kv_cache, "a step while the KV cache is released"
        assert batch.step > self.last_step, "steps are numbered upwards"
        self.last_step = batch.step
        assert 0 < batch.num_tokens <= self.max_num_batched_tokens
        assert 0 < len(batch.steps) <= self.max_num_seqs
        assert len({step.row for step in batch.steps}) == len(batch.steps), "a row appears twice"
        lengths = [step.num_tokens for step in batch.steps]
        assert lengths == sorted(lengths, key=lambda n: n != 1), "rows that only decode come first"
        assert batch.is_repeat == is_repeat(batch, self.last_batch), "is_repeat is set exactly where it is true"
        self.last_batch = batch
        self._admit(batch)
        self._append(batch)
        outcome = StepResult([], [], [])
        allowed = _allowed(masks, self.vocab_size)
        reads: dict[tuple[int, int], int] = {}
        for step in batch.steps:
            row = self.rows[step.row]
            assert row.seq_id == step.seq_id, "a step names a row of another sequence"
            for position in range(step.start, step.start + step.num_tokens):
                self._compute(row, position, reads)
            self.num_computed_tokens += step.num_tokens
            if step.samples:
                assert row.is_constrained == (step.row in allowed), "constrained rows that sample have masks"
                self._sample(row, step.start + step.num_tokens, outcome, allowed.get(step.row))
        handle = FakeHandle(self, batch, outcome, reads, {step.row: step.seq_id for step in batch.steps})
        self.in_flight.append(handle)
        return handle

    def _admit(self, batch: ScheduledBatch) -> None:
        for admission in batch.admitted:
            assert 0 <= admission.row < self.max_num_seqs
            assert self.has_adapter(admission.adapter), "a sequence runs with an adapter that is not there"
            for handle in self.in_flight:
                assert admission.row not in handle.rows, "a row is given away while a launched step uses it"
            hashes = []
            text = beginning(admission.adapter)
            for token_id in admission.token_ids:
                hashes.append(text := extend_hash(text, token_id))
            self.rows[admission.row] = Row(
                admission.seq_id,
                list(admission.token_ids),
                hashes,
                admission.origin,
                admission.params,
                admission.is_constrained,
                [[] for _ in self.windows],
                [0 for _ in self.windows],
            )

    def _append(self, batch: ScheduledBatch) -> None:
        for append in batch.appended:
            row = self.rows[append.row]
            table = row.tables[append.group]
            table.extend([0] * (append.start + len(append.block_ids) - len(table)))
            for index, block_id in enumerate(append.block_ids, start=append.start):
                assert 1 <= block_id <= self.num_blocks, f"block {block_id} does not exist"
                table[index] = block_id
            row.dead[append.group] = append.dead
            table[: append.dead] = [0] * append.dead

    def _compute(self, row: Row, position: int, reads: dict[tuple[int, int], int]) -> None:
        """Writes the slot of `position` and checks all slots that it attends."""
        assert position < len(row.token_ids), "a step computes a token that is not known"
        for group, window in enumerate(self.windows):
            table, slots = row.tables[group], self.slots[group]
            block_id = table[position // self.block_size]
            assert block_id != 0, "a token is written to the dummy block"
            for handle in self.in_flight:
                other = handle.reads.get((group, block_id), row.seq_id)
                assert other == row.seq_id, f"block {block_id} is written while a launched step uses it for another"
            slots.setdefault(block_id, [None] * self.block_size)[position % self.block_size] = row.hashes[position]
            first = 0 if window is None else max(0, position - window + 1)
            for attended in range(first, position + 1):
                block_id = table[attended // self.block_size]
                reads[(group, block_id)] = row.seq_id
                found = slots[block_id][attended % self.block_size]
                assert found == row.hashes[attended], (
                    f"sequence {row.seq_id}: position {position} attends {attended} in block {block_id} of group "
                    f"{group}, which holds another text"
                )

    def _sample(self, row: Row, position: int, outcome: StepResult, allowed: list[int] | None) -> None:
        """Yields the token at `position` and writes it where the next step reads it."""
        del row.token_ids[position:], row.hashes[position:]
        assert len(row.token_ids) == position
        num_choices = self.vocab_size if allowed is None else len(allowed)
        token_id = next_token(row.hashes[-1], row.params.seed, position - row.origin, num_choices)
        token_id = token_id if allowed is None else allowed[token_id]
        is_bad = row.token_ids[-1] in self.bad_tokens
        outcome.token_ids.append(0 if is_bad else token_id)
        outcome.errors.append("the logits are not finite" if is_bad else None)
        wants = row.params.logprobs is not None
        outcome.logprobs.append(TokenLogprobs(-0.5, [(token_id, -0.5)]) if wants else None)
        row.token_ids.append(token_id)
        row.hashes.append(extend_hash(row.hashes[-1], token_id))


def _allowed(masks: TokenMasks | None, vocab_size: int) -> dict[int, list[int]]:
    """Row -> the tokens that it may sample, in ascending order."""
    if masks is None:
        return {}
    words = masks.words().tolist()
    return {
        row: [token for token in range(vocab_size) if bits[token // 32] >> token % 32 & 1]
        for row, bits in zip(masks.rows, words, strict=True)
    }


def expected_output(
    prompt_ids: list[int],
    params: SamplingParams,
    *,
    vocab_size: int = 50,
    max_context: int = 4096,
    adapter: int = 0,
) -> tuple[list[int], str]:
    """What a prompt run alone yields: its tokens and finish_reason, by a plain loop without blocks or batches."""
    token_ids, origin, output = list(prompt_ids), len(prompt_ids), []
    limit = min(max_context, params.max_context or max_context)
    while params.max_tokens is None or len(output) < params.max_tokens:
        text = beginning(adapter)
        for token_id in token_ids:
            text = extend_hash(text, token_id)
        token_id = next_token(text, params.seed, len(token_ids) - origin, vocab_size)
        token_ids.append(token_id)
        output.append(token_id)
        if token_id in params.stop_token_ids and not params.ignore_eos:
            return output, "stop"
        if len(output) == params.max_tokens:
            break
        if len(token_ids) == limit:
            if not params.shift:
                break
            keep = len(prompt_ids) if params.num_keep < 0 else params.num_keep
            keep = min(keep, limit - max(2, limit // 4))
            dropped = (len(token_ids) - keep) // 2
            token_ids = token_ids[:keep] + token_ids[keep + dropped :]
            origin -= dropped
    return output, "length"
