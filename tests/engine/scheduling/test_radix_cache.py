"""The prefix tree by hand: what is found, what is evicted and in which order."""

from __future__ import annotations

import pytest

from engine.scheduling.block_pool import Block, BlockPool, Node
from engine.scheduling.radix_cache import CacheKey, RadixCache, num_dead_blocks

KEY = CacheKey(0, "", "auto")


class Tree:
    """A cache of blocks of two tokens, and the blocks of each text that was put into it."""

    def __init__(self, num_blocks: int, windows: tuple[int | None, ...] = (None,)) -> None:
        self.pools = [BlockPool(num_blocks) for _ in windows]
        self.cache = RadixCache(self.pools, windows, 2)

    def hold(self, token_ids: list[int], key: CacheKey = KEY) -> list[list[Block]]:
        """Computes a text whose beginning may be cached; returns its blocks, a list a position, in use."""
        path = self.cache.match(key, token_ids, len(token_ids) // 2)
        held: list[list[Block]] = []
        node: Node | None = None
        for node in path:
            blocks = [block for block in node.blocks if block is not None]
            for pool, block in zip(self.pools, blocks, strict=True):
                pool.add_reference(block)
            held.append(blocks)
        for start in range(2 * len(path), len(token_ids) - 1, 2):
            blocks = [self.cache.allocate(group) for group in range(len(self.pools))]
            node = self.cache.insert(key, node, tuple(token_ids[start : start + 2]), blocks)
            held.append(blocks)
        self.cache.check()
        return held

    def release(self, held: list[list[Block]]) -> None:
        for blocks in reversed(held):
            for pool, block in zip(self.pools, blocks, strict=True):
                pool.release(block)
        self.cache.check()

    def put(self, token_ids: list[int], key: CacheKey = KEY) -> None:
        self.release(self.hold(token_ids, key))

    def find(self, token_ids: list[int], key: CacheKey = KEY) -> list[int]:
        """Block ids of the first group on the matched path; 0 where the block is gone."""
        nodes = self.cache.match(key, token_ids, len(token_ids) // 2)
        return [0 if node.blocks[0] is None else node.blocks[0].block_id for node in nodes]

    def free_ids(self, group: int = 0) -> list[int]:
        return [block.block_id for block in self.pools[group].free_blocks()]


def test_the_longest_prefix_of_full_blocks_is_found() -> None:
    tree = Tree(8)
    tree.put([1, 2, 3, 4, 5, 6])
    assert tree.find([1, 2, 3, 4, 5, 6]) == [1, 2, 3]
    assert tree.find([1, 2, 3, 4, 5, 9]) == [1, 2]
    assert tree.find([1, 2, 3]) == [1]
    assert tree.find([9, 2, 3, 4]) == []
    assert tree.find([3, 4]) == [], "a block is found under what stands before it only"


def test_texts_share_their_common_beginning() -> None:
    tree = Tree(8)
    tree.put([1, 2, 3, 4])
    tree.put([1, 2, 5, 6])
    assert tree.find([1, 2, 3, 4]) == [1, 2]
    assert tree.find([1, 2, 5, 6]) == [1, 3]
    assert len(list(tree.cache.nodes())) == 3


def test_adapter_salt_and_kv_type_part_the_trees() -> None:
    tree = Tree(8)
    tree.put([1, 2])
    for key in (CacheKey(1, "", "auto"), CacheKey(0, "salt", "auto"), CacheKey(0, "", "fp8")):
        assert tree.find([1, 2], key) == []
        tree.put([1, 2], key)
    assert tree.find([1, 2], CacheKey(1, "", "auto")) == [2]
    assert tree.find([1, 2], CacheKey(0, "salt", "auto")) == [3]
    assert tree.find([1, 2]) == [1]


def test_eviction_takes_the_oldest_text_from_its_end() -> None:
    tree = Tree(4)
    tree.put([1, 2, 3, 4])  # blocks 1, 2
    tree.put([5, 6, 7, 8])  # blocks 3, 4
    assert tree.free_ids() == [2, 1, 4, 3]
    tree.hold([9, 9])
    assert tree.find([1, 2, 3, 4]) == [1]
    tree.hold([8, 8])
    assert tree.find([1, 2, 3, 4]) == []
    assert tree.find([5, 6, 7, 8]) == [3, 4]


def test_a_hit_makes_a_text_young_again() -> None:
    tree = Tree(4)
    tree.put([1, 2, 3, 4])
    tree.put([5, 6, 7, 8])
    tree.put([1, 2, 3, 4])
    assert tree.free_ids() == [4, 3, 2, 1]
    tree.hold([9, 9, 9, 9])
    assert tree.find([1, 2, 3, 4]) == [1, 2]
    assert tree.find([5, 6, 7, 8]) == []


def test_a_branch_in_use_keeps_its_stem() -> None:
    tree = Tree(4)
    stem = tree.hold([1, 2])  # block 1
    branch = tree.hold([1, 2, 3, 4])  # blocks 1, 2
    tree.release(stem)
    assert tree.free_ids() == [3, 4]
    tree.put([1, 2, 5, 6])  # blocks 1, 3
    tree.release(branch)
    # The other branch came free first, then this one from its end.
    assert tree.free_ids() == [4, 3, 2, 1]


def test_a_text_that_is_there_already_keeps_its_blocks() -> None:
    tree = Tree(4)
    tree.put([1, 2])
    block = tree.cache.allocate(0)
    node = tree.cache.insert(KEY, None, (1, 2), [block])
    assert node is not None
    assert node.blocks != [block]
    assert block.node is None


def test_roots_without_texts_are_forgotten() -> None:
    tree = Tree(2)
    for salt in range(100):
        tree.put([1, 2], CacheKey(0, str(salt), "auto"))
    assert len(list(tree.cache.nodes())) == 2
    assert len(tree.cache._roots) == 2


def test_clear_forgets_everything_and_spares_blocks_in_use() -> None:
    tree = Tree(4)
    held = tree.hold([1, 2, 3, 4])
    tree.put([5, 6])
    tree.cache.clear()
    tree.cache.check()
    assert tree.find([1, 2]) == tree.find([5, 6]) == []
    assert tree.free_ids() == [3, 4]
    tree.release(held)
    assert sorted(tree.free_ids()) == [1, 2, 3, 4]


def test_nothing_is_inserted_below_a_node_that_was_evicted() -> None:
    tree = Tree(1, windows=(1,))
    held = tree.hold([1, 2])
    (node,) = tree.cache.match(KEY, [1, 2], 1)
    tree.release(held)
    block = tree.cache.allocate(0)
    assert not node.is_attached
    assert tree.cache.insert(KEY, node, (3, 4), [block]) is None


@pytest.mark.parametrize(
    ("position", "window", "dead"),
    [(10, None, 0), (4, 3, 1), (4, 4, 0), (5, 4, 1), (3, 1, 1), (4, 1, 2), (0, 1, 0), (7, 100, 0)],
)
def test_blocks_die_when_no_later_token_attends_them(position: int, window: int | None, dead: int) -> None:
    assert num_dead_blocks(position, window, 2) == dead
    if window is not None and dead:
        assert 2 * dead <= position - window + 1, "the last slot of a dead block lies before the window"


class TestSlidingWindow:
    """Group 0 attends everything, group 1 the last three tokens: a match of n blocks needs the last of them only."""

    def test_a_match_needs_the_last_window_only(self) -> None:
        tree = Tree(8, windows=(None, 3))
        tree.put([1, 2, 3, 4, 5, 6])
        pool = tree.pools[1]
        tree.cache._evict(pool._blocks[1], 1)  # the first text block, far outside of any window
        tree.cache.check()
        assert tree.find([1, 2, 3, 4, 5, 6]) == [1, 2, 3]
        assert tree.find([1, 2, 3, 4]) == [1, 2]
        assert tree.find([1, 2]) == [], "the next token would attend what is gone"

    def test_a_gap_in_the_window_shortens_the_match(self) -> None:
        tree = Tree(8, windows=(None, 3))
        tree.put([1, 2, 3, 4, 5, 6])
        tree.cache._evict(tree.pools[1]._blocks[3], 1)
        tree.cache.check()
        assert tree.find([1, 2, 3, 4, 5, 6]) == [1, 2]

    def test_losing_the_full_group_frees_the_window_too(self) -> None:
        tree = Tree(2, windows=(None, 3))
        tree.put([1, 2, 3, 4])
        tree.hold([7, 8])
        assert tree.find([1, 2, 3, 4]) == [1]
        assert tree.pools[1].num_free == 1
        assert len(list(tree.cache.nodes())) == 2
