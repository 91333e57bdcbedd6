"""BlockManager: the block tables of sequences, over one pool a KV group and the radix cache. Used by the Scheduler.

Rules kept here:
- A block that a launched step may read or write does not return to its pool before that step's result has arrived:
  `release` takes the blocks of a sequence in flight into `_retired`, `step_done` lets them go.
- A full block is cached as soon as the result of the step that filled it has arrived, so requests that run at the same
  time share it. If two sequences computed the same block, the later one swaps its copy for the cached one and gives its
  own back: memory is shared again, and a sequence always references the cached blocks of its whole path (the radix
  cache's leaf-first eviction rests on that).
- A block that has left a sliding window is released while its sequence runs. It stays in the cache until it is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import NamedTuple

import msgspec

from engine.scheduling.batch import BlockAppend
from engine.scheduling.block_pool import Block, BlockPool, Node
from engine.scheduling.radix_cache import CacheKey, RadixCache, num_dead_blocks
from engine.scheduling.sequence import Sequence


class KVUsage(msgspec.Struct, frozen=True):
    """How full the KV cache is, all groups together. What the prefix cache alone holds counts as free."""

    num_blocks: int
    num_used_blocks: int
    """Held by running sequences, or by steps in flight of sequences that have left; shared ones counted once."""
    num_slots: int
    """Tokens that the used blocks have room for."""
    num_stored_tokens: int
    """Tokens of running sequences in them, launched ones included; shared ones counted once."""


class _Retired(NamedTuple):
    """A block that waits for the result of `step`."""

    step: int
    group: int
    block: Block


class BlockManager:
    """Who holds which block.

    Args:
        num_blocks: Blocks of each group, the dummy block not counted.
        block_size: Tokens in a block.
        windows: One a KV group; position p attends [p - window + 1, p], None: all before p.
        max_step_tokens: Most tokens that one step computes of one sequence.
        kv_cache_type: Part of the cache key.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        windows: Seq[int | None],
        max_step_tokens: int,
        kv_cache_type: str = "auto",
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.pools = tuple(BlockPool(num_blocks) for _ in windows)
        self.cache = RadixCache(self.pools, windows, block_size)
        self._windows = tuple(windows)
        self._max_step_tokens = max_step_tokens
        self._kv_cache_type = kv_cache_type
        self._retired: list[_Retired] = []

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be had in every group, those held by the cache alone included."""
        return min(pool.num_free for pool in self.pools)

    @property
    def has_retired(self) -> bool:
        """Whether blocks will come free with the results of launched steps."""
        return bool(self._retired)

    def max_context(self, limit: int) -> int:
        """The longest sequence, at most `limit` tokens, that can run when it runs alone."""
        for window in self._windows:
            # With the blocks that [p - window + 1, p] can lie in, a token a step is possible at any length.
            if window is None or self.num_blocks < (window + self.block_size - 2) // self.block_size + 1:
                limit = min(limit, self.num_blocks * self.block_size)
        return limit

    def match(self, seq: Sequence) -> list[Node]:
        """The cached path of a sequence that is to be admitted; the last token is always computed again."""
        return self.cache.match(self._key(seq), seq.token_ids, (seq.num_tokens - 1) // self.block_size)

    def can_admit(self, seq: Sequence, path: Seq[Node], num_running: int) -> bool:
        """Whether all tokens of `seq` fit beside the running sequences, which hold what they need for theirs.

        A margin of one block a running sequence, at most 1/64 of the pool, keeps a full pool from admitting what it
        would preempt a few steps later.
        """
        margin = min(num_running, self.num_blocks // 64)
        for group, pool in enumerate(self.pools):
            hits = [node.blocks[group] for node in path[self._num_dead(group, len(path)) :]]
            free = pool.num_free - sum(1 for block in hits if block is not None and block.ref_count == 0)
            if self._num_needed(group, seq) - len(hits) > free - margin:
                return False
        return True

    def admit(self, seq: Sequence, path: Seq[Node]) -> None:
        """Fills the empty tables of `seq` with its cached prefix."""
        seq.num_dead_blocks = [self._num_dead(group, len(path)) for group in range(len(self.pools))]
        seq.block_tables = []
        for group, pool in enumerate(self.pools):
            dead = seq.num_dead_blocks[group]
            table = [pool.dummy] * dead
            for node in path[dead:]:
                block = node.blocks[group]
                assert block is not None, "a match lacks a block that the next token attends"
                pool.add_reference(block)
                table.append(block)
            seq.block_tables.append(table)
        seq.node = path[-1] if path else None
        seq.num_cached_blocks = len(path)
        seq.num_computed_tokens = seq.num_done_tokens = seq.num_slots = len(path) * self.block_size
        seq.has_new_blocks = bool(path)
        seq.next_block_event = self._next_event(seq)

    def grow(self, seq: Sequence, num_tokens: int) -> int:
        """Gives `seq` slots for its next `num_tokens` tokens, or as many as there are blocks for; returns how many."""
        num_free_slots = seq.num_slots - seq.num_computed_tokens
        if num_free_slots < num_tokens:
            num_new = min(-(-(num_tokens - num_free_slots) // self.block_size), self.num_free_blocks)
            for group, table in enumerate(seq.block_tables):
                table.extend(self.cache.allocate(group) for _ in range(num_new))
            seq.num_slots += num_new * self.block_size
            seq.has_new_blocks = seq.has_new_blocks or num_new > 0
            num_free_slots = seq.num_slots - seq.num_computed_tokens
        return min(num_tokens, num_free_slots)

    def take_appends(self, seq: Sequence) -> list[BlockAppend]:
        """What the runner does not know yet of the tables of `seq`."""
        assert seq.row is not None
        appends: list[BlockAppend] = []
        for group, index in sorted(seq.swapped_blocks):
            dead = seq.num_dead_blocks[group]
            if index < dead:  # has left the window since
                continue
            block_id = seq.block_tables[group][index].block_id
            last = appends[-1] if appends else None
            if last is not None and (last.group, last.start + len(last.block_ids)) == (group, index):
                last.block_ids.append(block_id)  # a prompt that two computed is one change, not one a block
            else:
                appends.append(BlockAppend(seq.row, group, index, [block_id], dead))
        seq.swapped_blocks.clear()
        length = len(seq.block_tables[0])
        if length > seq.num_sent_blocks:
            for group, table in enumerate(seq.block_tables):
                dead = seq.num_dead_blocks[group]
                start = max(seq.num_sent_blocks, dead)
                appends.append(BlockAppend(seq.row, group, start, [block.block_id for block in table[start:]], dead))
            seq.num_sent_blocks = length
        seq.has_new_blocks = False
        return appends

    def step_result_arrived(self, seq: Sequence) -> None:
        """Caches the full blocks below `num_done_tokens` and releases those that have left a window.

        Nothing happens before `num_done_tokens` has come to `next_block_event`: need not be called until then.
        """
        size = self.block_size
        while (end := (seq.num_cached_blocks + 1) * size) <= seq.num_done_tokens:
            index = seq.num_cached_blocks
            blocks = [table[index] for table in seq.block_tables]
            node = self.cache.insert(self._key(seq), seq.node, tuple(seq.token_ids[end - size : end]), blocks)
            if node is None:
                break
            if node.blocks != blocks:
                self._swap(seq, index, node)
            seq.node = node
            seq.num_cached_blocks += 1
        for group, window in enumerate(self._windows):
            if window is not None:
                self._release_dead(seq, group, num_dead_blocks(seq.num_done_tokens, window, size))
        seq.next_block_event = self._next_event(seq)

    def forget(self, seq: Sequence) -> None:
        """Takes what only `seq` uses of its path out of the prefix cache: its values went wrong, nobody may hit them.

        Blocks that others compute on stay; if these are wrong, too, their sequences will tell.
        """
        path = self.cache.match(self._key(seq), seq.token_ids, len(seq.token_ids) // self.block_size)
        num_kept = len(path)
        while num_kept and not self._is_shared(seq, path[num_kept - 1], num_kept - 1):
            num_kept -= 1
        if num_kept < len(path):
            self.cache.detach(path[num_kept])
        seq.num_cached_blocks, seq.node = 0, None

    def _is_shared(self, seq: Sequence, node: Node, index: int) -> bool:
        """Whether a sequence other than `seq` computes on a block of `node`, number `index` of its path."""
        for group, block in enumerate(node.blocks):
            if block is None:
                continue
            table = seq.block_tables[group] if seq.block_tables else []
            is_own = index < len(table) and table[index] is block
            num_retired = sum(retired.block is block for retired in self._retired)
            if block.ref_count > is_own + num_retired:
                return True
        return False

    def release(self, seq: Sequence) -> None:
        """Takes all blocks from `seq`; they return with the result of its last launched step."""
        for group, table in enumerate(seq.block_tables):
            for block in reversed(table[seq.num_dead_blocks[group] :]):
                self._release_one(seq, group, block)
        seq.block_tables = []
        seq.num_dead_blocks = []
        seq.swapped_blocks.clear()
        seq.num_sent_blocks = seq.num_cached_blocks = 0
        seq.num_computed_tokens = seq.num_done_tokens = seq.num_slots = 0
        seq.has_new_blocks = False
        seq.node = None

    def step_done(self, step: int) -> None:
        """Lets go of the blocks that waited for `step` or one before."""
        waiting = []
        for retired in self._retired:
            if retired.step > step:
                waiting.append(retired)
            else:
                self.pools[retired.group].release(retired.block)
        self._retired = waiting

    def usage(self, running: Collection[Sequence]) -> KVUsage:
        """Counts blocks and tokens; `running` are all sequences that hold blocks. O(sequences)."""
        num_groups, size = len(self.pools), self.block_size
        num_used = num_groups * self.num_blocks - sum(pool.num_free for pool in self.pools)
        # Only a sequence's last block has empty slots, and that one is not shared: only full blocks are.
        num_empty = num_groups * sum(seq.num_slots - seq.num_computed_tokens for seq in running)
        num_left = Counter(map(_block_of, self._retired))
        num_empty += size * sum(block.ref_count == count for block, count in num_left.items())
        return KVUsage(num_groups * self.num_blocks, num_used, num_used * size, num_used * size - num_empty)

    def check(self, sequences: Collection[Sequence]) -> None:
        """Recomputes every invariant; `sequences` are all that hold blocks."""
        for group, pool in enumerate(self.pools):
            pool.check()
            counts = [0] * (self.num_blocks + 1)
            for seq in sequences:
                for block in seq.block_tables[group][seq.num_dead_blocks[group] :]:
                    counts[block.block_id] += 1
            for retired in self._retired:
                counts[retired.block.block_id] += retired.group == group
            assert counts == pool.ref_counts(), f"reference counts of group {group} differ from the block tables"
        self.cache.check()
        for seq in sequences:
            self._check_tables(seq)

    def _check_tables(self, seq: Sequence) -> None:
        length = len(seq.block_tables[0])
        assert seq.num_slots == length * self.block_size, f"{seq} miscounts its slots"
        assert seq.has_new_blocks or not (seq.swapped_blocks or length > seq.num_sent_blocks), f"{seq} hides a block"
        assert seq.next_block_event == self._next_event(seq) > seq.num_done_tokens, f"{seq} has slept through a block"
        assert length * self.block_size - seq.num_computed_tokens >= 0, f"{seq} has computed tokens without a slot"
        # Waste is less than a block: no block is held before a token that is launched needs it.
        assert length * self.block_size - seq.num_computed_tokens < self.block_size, f"{seq} holds a block too many"
        for group, table in enumerate(seq.block_tables):
            dead = seq.num_dead_blocks[group]
            assert len(table) == length, f"the tables of {seq} differ in length"
            assert all(block is self.pools[group].dummy for block in table[:dead])
            assert all(block is not self.pools[group].dummy for block in table[dead:])
            assert dead == num_dead_blocks(seq.num_done_tokens, self._windows[group], self.block_size)
        node = seq.node
        for index in reversed(range(seq.num_cached_blocks)):
            assert node is not None, f"the path of {seq} is shorter than its count of cached blocks"
            assert list(node.tokens) == seq.token_ids[index * self.block_size : (index + 1) * self.block_size]
            for group, window in enumerate(self._windows):
                if window is None:
                    assert node.blocks[group] is seq.block_tables[group][index], f"{seq} holds a copy of a cached block"
            node = node.parent

    def _swap(self, seq: Sequence, index: int, node: Node) -> None:
        """Goes on with the cached blocks of `node` and gives back the copies that `seq` computed at the same time."""
        for group, table in enumerate(seq.block_tables):
            cached, own = node.blocks[group], table[index]
            if cached is None or cached is own:
                continue
            self.pools[group].add_reference(cached)
            table[index] = cached
            seq.swapped_blocks.append((group, index))
            seq.has_new_blocks = True
            self._release_one(seq, group, own)

    def _next_event(self, seq: Sequence) -> int:
        """The `num_done_tokens` at which `step_result_arrived` has something to do."""
        size, done = self.block_size, seq.num_done_tokens
        event = (done // size + 1) * size
        for window in self._windows:
            if window is not None:
                event = min(event, (num_dead_blocks(done, window, size) + 1) * size + window - 1)
        return event

    def _release_dead(self, seq: Sequence, group: int, num_dead: int) -> None:
        # Steps of `seq` still in flight begin at num_done_tokens or after it, so none of them attends these blocks.
        pool, table = self.pools[group], seq.block_tables[group]
        for index in reversed(range(seq.num_dead_blocks[group], num_dead)):
            pool.release(table[index])
            table[index] = pool.dummy
        seq.num_dead_blocks[group] = max(num_dead, seq.num_dead_blocks[group])

    def _release_one(self, seq: Sequence, group: int, block: Block) -> None:
        if seq.num_in_flight:  # a launched step may still read or write it
            self._retired.append(_Retired(seq.last_step, group, block))
        else:
            self.pools[group].release(block)

    def _num_dead(self, group: int, num_blocks: int) -> int:
        """Dead entries of a table whose first `num_blocks` blocks are computed."""
        return num_dead_blocks(num_blocks * self.block_size, self._windows[group], self.block_size)

    def _num_needed(self, group: int, seq: Sequence) -> int:
        """Blocks of a group that `seq` holds at most until all its present tokens are computed."""
        window, num_blocks = self._windows[group], -(-seq.num_tokens // self.block_size)
        if window is None:
            return num_blocks
        return min(num_blocks, -(-(window - 1 + self._max_step_tokens) // self.block_size) + 1, self.num_blocks)

    def _key(self, seq: Sequence) -> CacheKey:
        return CacheKey(seq.adapter, seq.cache_salt, self._kv_cache_type)


def _block_of(retired: _Retired) -> Block:
    return retired.block
