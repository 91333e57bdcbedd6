"""BlockPool: the KV blocks of one KV group, their reference counts, and the order in which free ones are used up.

There is one pool a KV group (full attention, sliding window), because each group has KV tensors of its own and its
blocks come free at different times; block ids are therefore only meaningful together with their group.

A block is referenced (by the block tables of sequences) or free, never both. A free block may still hold what it was
computed for: then `Block.node` names the node of the radix cache that would find it, and the block lies in the free
list at the time it was last released. Blocks that hold nothing useful go to the front. So the order of the free list
*is* the order of eviction, and no clock is needed.

The list is doubly linked through the blocks themselves, with the dummy block as head and tail at once: a prefix hit
takes a block from its middle in O(1).
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.scheduling.batch import DUMMY_BLOCK


class Block:
    """`block_size` slots of one KV group. Changed by its pool and by the radix cache only."""

    __slots__ = ("block_id", "next", "node", "prev", "ref_count")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        self.node: Node | None = None
        self.prev: Block = self
        self.next: Block = self

    def __repr__(self) -> str:
        cached = ", cached" if self.node is not None else ""
        return f"Block({self.block_id}, ref_count={self.ref_count}{cached})"


class Node:
    """What a cached block was computed for: a full block of tokens under its parent. Changed by the radix cache."""

    __slots__ = ("blocks", "children", "is_attached", "parent", "tokens")

    def __init__(self, tokens: tuple[int, ...], parent: Node | None, blocks: list[Block | None]) -> None:
        self.tokens = tokens
        self.parent = parent
        self.blocks = blocks
        """One a KV group; None where a sliding group's block has been taken for something else."""
        self.children: dict[tuple[int, ...], Node] = {}
        self.is_attached = True
        """False once the node cannot be found any more; it never comes back."""


class BlockPool:
    """Blocks 1 to `num_blocks` of one KV group; block 0 is the dummy that belongs to nobody."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = 0
        self.dummy = Block(DUMMY_BLOCK)
        self._blocks = [self.dummy, *(Block(block_id) for block_id in range(1, num_blocks + 1))]
        for block in self._blocks[1:]:
            self._link_before(self.dummy, block)

    def free_blocks(self) -> Iterator[Block]:
        """The free blocks in the order in which they will be taken."""
        block = self.dummy.next
        while block is not self.dummy:
            yield block
            block = block.next

    def take_first(self) -> Block:
        """Takes the first free block, with one reference. Whoever calls this must forget its `node`.

        Raises:
            IndexError: no block is free.
        """
        block = self.dummy.next
        if block is self.dummy:
            raise IndexError(f"all {self.num_blocks} blocks of the pool are in use")
        self._unlink(block)
        block.ref_count = 1
        return block

    def add_reference(self, block: Block) -> None:
        """One more block table names `block`; a free one leaves the free list."""
        if block.ref_count == 0:
            self._unlink(block)
        block.ref_count += 1

    def release(self, block: Block) -> None:
        """One block table less names `block`. The last one puts it into the free list.

        Release a sequence's blocks from the last to the first: then a cached block is always taken before the blocks
        that one must pass to find it.
        """
        assert block.ref_count > 0, f"{block} is free already"
        block.ref_count -= 1
        if block.ref_count == 0:
            self._link_before(self.dummy.next if block.node is None else self.dummy, block)

    def forget(self, block: Block) -> None:
        """The cache no longer knows `block`; if it is free, it is the next to be taken."""
        block.node = None
        if block.ref_count == 0:
            self._unlink(block)
            self._link_before(self.dummy.next, block)

    def ref_counts(self) -> list[int]:
        """Reference counts by block id."""
        return [block.ref_count for block in self._blocks]

    def check(self) -> None:
        """Recomputes every invariant; for tests and for debugging."""
        free = list(self.free_blocks())
        assert len(free) == self.num_free, f"{len(free)} blocks in the free list, {self.num_free} counted"
        assert len({block.block_id for block in free}) == len(free), "a block is twice in the free list"
        for block in free:
            assert block.next.prev is block, f"broken link behind {block}"
            assert block.prev.next is block, f"broken link before {block}"
        free_ids = {block.block_id for block in free}
        for block in self._blocks[1:]:
            assert (block.ref_count == 0) == (block.block_id in free_ids), (
                f"{block} is both free and in use, or neither"
            )
        assert self.dummy.ref_count == 0, "the dummy block is referenced"
        assert self.dummy.node is None, "the dummy block is cached"

    def _link_before(self, position: Block, block: Block) -> None:
        block.prev, block.next = position.prev, position
        position.prev.next = block
        position.prev = block
        self.num_free += 1

    def _unlink(self, block: Block) -> None:
        block.prev.next = block.next
        block.next.prev = block.prev
        block.prev = block.next = block
        self.num_free -= 1
