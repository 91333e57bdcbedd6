"""RadixCache: finds the blocks that already hold the KV of a prompt's beginning.

Theory of operation
-------------------
A tree in which one node is one *full* block, keyed by its tokens under its parent, so a node is found by the whole text
that leads to it and is never split. Prompts and generated tokens are cached alike. There is one root a (adapter, cache
salt, KV type), because the same tokens give other KV, or must not be shared, across these.

A node owns no memory. It names one block a KV group; the block is either in use by running sequences or free in its
pool, where it waits to be found again (BlockPool) or to be taken for something else (`allocate`, which then forgets
the node).

Two kinds of KV group:
- *full* attention: a match needs the block of every node on its path. Whoever references a node's block references
  those of all nodes above it (sequences swap their own copy of a block for the cached one, see Scheduler), and
  sequences release from the last block to the first. Hence eviction is leaf first without looking for leaves.
- *sliding window*: a match that ends before position p needs only the blocks that position p still attends,
  [p - window + 1, p). Blocks before may be missing, and a node may be left with no block of such a group at all.

What may live here: integers and tuples. No clock: the order of use is the order of the free lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.scheduling.block_pool import Block, BlockPool, Node


class CacheKey(NamedTuple):
    """What must be equal, besides the tokens, for two sequences to share KV."""

    adapter: int
    cache_salt: str
    kv_cache_type: str


class Root(Node):
    """Where the texts of one CacheKey begin: a node without tokens and blocks."""

    __slots__ = ("key",)

    def __init__(self, key: CacheKey) -> None:
        super().__init__((), None, [])
        self.key = key


def num_dead_blocks(position: int, window: int | None, block_size: int) -> int:
    """How many leading blocks no token at `position` or later attends to."""
    return 0 if window is None else max(0, position - window + 1) // block_size


class RadixCache:
    """The prefix tree over the blocks of `pools`, one pool a KV group with its window (None: full attention)."""

    def __init__(self, pools: Sequence[BlockPool], windows: Sequence[int | None], block_size: int) -> None:
        self._pools = tuple(pools)
        self._windows = tuple(windows)
        self._block_size = block_size
        self._roots: dict[CacheKey, Root] = {}

    def match(self, key: CacheKey, token_ids: Sequence[int], max_blocks: int) -> list[Node]:
        """The longest usable prefix of `token_ids`, as its path of nodes; at most `max_blocks` of them.

        Takes no references: the caller does, before the next call of `allocate`.
        """
        path: list[Node] = []
        node: Node | None = self._roots.get(key)
        size = self._block_size
        while node is not None and len(path) < max_blocks:
            start = len(path) * size
            node = node.children.get(tuple(token_ids[start : start + size]))
            if node is not None:
                path.append(node)
        return path[: self._usable_length(path)]

    def insert(
        self, key: CacheKey, parent: Node | None, tokens: tuple[int, ...], blocks: Sequence[Block]
    ) -> Node | None:
        """Makes a computed block findable under `parent` (None: under the root of `key`).

        Args:
            tokens: Its tokens, `block_size` of them.
            blocks: The caller's block in each group, the pool's dummy where it has none.

        Returns:
            The node, which may be an older one with other blocks: then the caller should go on with those.
            None if `parent` is no longer in the tree.
        """
        if parent is None:
            parent = self._roots.get(key)
        if parent is None:
            parent = self._roots[key] = Root(key)
        if not parent.is_attached:
            return None
        node = parent.children.get(tokens)
        if node is None:
            node = parent.children[tokens] = Node(tokens, parent, [None] * len(self._pools))
        for group, block in enumerate(blocks):
            if node.blocks[group] is None and block is not self._pools[group].dummy:
                node.blocks[group] = block
                block.node = node
        return node

    def allocate(self, group: int) -> Block:
        """Takes the least recently used free block of a group and forgets what it cached.

        Raises:
            IndexError: no block of the group is free.
        """
        block = self._pools[group].take_first()
        if block.node is not None:
            self._evict(block, group)
        return block

    def clear(self) -> None:
        """Forgets everything; blocks in use stay in use."""
        for root in list(self._roots.values()):
            for node in list(root.children.values()):
                self.detach(node)

    def nodes(self) -> Iterator[Node]:
        """All nodes but the roots, parents before children."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self) -> None:
        """Recomputes every invariant; for tests and for debugging."""
        free_rank = [{id(block): rank for rank, block in enumerate(pool.free_blocks())} for pool in self._pools]
        num_cached = [0] * len(self._pools)
        for node in self.nodes():
            assert node.is_attached, "a node in the tree is marked as detached"
            assert len(node.tokens) == self._block_size, f"a node of {len(node.tokens)} tokens"
            assert node.children or any(node.blocks), "a leaf without blocks stayed in the tree"
            parent = node.parent
            assert parent is not None
            assert parent.children[node.tokens] is node, "a node is not its parent's child"
            for group, block in enumerate(node.blocks):
                if block is None:
                    assert self._windows[group] is not None, "a node lost its block of a full-attention group"
                    continue
                assert block.node is node, f"{block} does not know its node"
                num_cached[group] += 1
                above = parent.blocks[group] if parent.blocks else None
                if self._windows[group] is None and above is not None:
                    assert above.ref_count >= (block.ref_count > 0), f"{block} is in use, {above} before it is not"
                    if id(above) in free_rank[group]:
                        ranks = free_rank[group]
                        assert ranks[id(block)] < ranks[id(above)], f"{above} would be evicted before its child {block}"
        for group, pool in enumerate(self._pools):
            in_pool = sum(1 for block in pool.free_blocks() if block.node is not None)
            assert in_pool <= num_cached[group], "a free block is cached by a node outside the tree"

    def _usable_length(self, path: list[Node]) -> int:
        """The largest length at which every sliding group still has the blocks that the next position attends."""
        sliding = [(group, window) for group, window in enumerate(self._windows) if window is not None]
        if not sliding:
            return len(path)
        runs = dict.fromkeys((group for group, _ in sliding), 0)  # blocks present without a gap, ending here
        usable = 0
        for length, node in enumerate(path, start=1):
            is_usable = True
            for group, window in sliding:
                runs[group] = runs[group] + 1 if node.blocks[group] is not None else 0
                needed = length - num_dead_blocks(length * self._block_size, window, self._block_size)
                is_usable = is_usable and runs[group] >= needed
            if is_usable:
                usable = length
        return usable

    def _evict(self, block: Block, group: int) -> None:
        """`block` is taken for something else."""
        node = block.node
        assert node is not None
        block.node = None
        node.blocks[group] = None
        if self._windows[group] is None:  # nothing below can be reached any more
            self.detach(node)
        else:
            self._prune(node)

    def detach(self, top: Node) -> None:
        """Takes `top` and all below it out of the tree; their free blocks become the first to be taken."""
        parent = top.parent
        stack = [top]
        while stack:
            node = stack.pop()
            node.is_attached = False
            stack.extend(node.children.values())
            node.children.clear()  # parents and children refer to each other: leave nothing to the garbage collector
            for group, block in enumerate(node.blocks):
                if block is not None:
                    self._pools[group].forget(block)
                    node.blocks[group] = None
        if parent is not None:
            del parent.children[top.tokens]
            self._prune(parent)

    def _prune(self, node: Node) -> None:
        """Removes `node` and those above it that have neither blocks nor children left."""
        while not node.children and not any(node.blocks):
            node.is_attached = False
            if isinstance(node, Root):
                del self._roots[node.key]
            if node.parent is None:
                return
            del node.parent.children[node.tokens]
            node = node.parent
