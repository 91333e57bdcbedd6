"""Free lists by hand: exact ids, in the order in which they are taken."""

from __future__ import annotations

import pytest

from engine.scheduling.block_pool import Block, BlockPool, Node


def free_ids(pool: BlockPool) -> list[int]:
    pool.check()
    return [block.block_id for block in pool.free_blocks()]


def cache(block: Block) -> Block:
    block.node = Node((1,), None, [block])
    return block


def test_blocks_are_taken_from_one_upwards_and_never_the_dummy() -> None:
    pool = BlockPool(3)
    assert free_ids(pool) == [1, 2, 3]
    assert [pool.take_first().block_id for _ in range(3)] == [1, 2, 3]
    assert free_ids(pool) == []
    assert pool.num_free == 0
    with pytest.raises(IndexError, match="all 3 blocks"):
        pool.take_first()


def test_cached_blocks_go_to_the_back_and_others_to_the_front() -> None:
    pool = BlockPool(4)
    first, second, third = (pool.take_first() for _ in range(3))
    pool.release(cache(second))
    assert free_ids(pool) == [4, 2]
    pool.release(third)
    assert free_ids(pool) == [3, 4, 2]
    pool.release(cache(first))
    assert free_ids(pool) == [3, 4, 2, 1]


def test_a_block_is_free_when_its_last_reference_goes() -> None:
    pool = BlockPool(2)
    block = pool.take_first()
    pool.add_reference(block)
    pool.release(block)
    assert free_ids(pool) == [2]
    pool.release(block)
    assert free_ids(pool) == [1, 2]
    with pytest.raises(AssertionError, match="is free already"):
        pool.release(block)


def test_a_hit_takes_a_block_out_of_the_middle() -> None:
    pool = BlockPool(3)
    blocks = [cache(pool.take_first()) for _ in range(3)]
    for block in blocks:
        pool.release(block)
    pool.add_reference(blocks[1])
    assert free_ids(pool) == [1, 3]
    pool.release(blocks[1])
    assert free_ids(pool) == [1, 3, 2]


def test_a_forgotten_block_is_the_next_to_be_taken() -> None:
    pool = BlockPool(3)
    blocks = [cache(pool.take_first()) for _ in range(3)]
    for block in blocks:
        pool.release(block)
    pool.forget(blocks[2])
    assert free_ids(pool) == [3, 1, 2]


def test_check_sees_a_count_that_is_wrong() -> None:
    pool = BlockPool(2)
    pool.take_first().ref_count = 0
    with pytest.raises(AssertionError, match="both free and in use, or neither"):
        pool.check()
