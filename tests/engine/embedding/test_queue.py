"""Which texts are embedded together: within the budget, near in length, and nobody waits for ever."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.embedding_engine import EmbeddingEngine
from engine.embedding_queue import MAX_TEXTS, EmbeddingQueue, TextJob
from engine.errors import EngineError
from engine.messages import Embed, Embedded, Failed
from tests.engine.fake_runner import FakeRunner


def embed(request_id: int, *lengths: int) -> Embed:
    return Embed(request_id=request_id, prompts=[[1] * length for length in lengths])


def lengths(jobs: list[TextJob]) -> list[int]:
    return [len(job.token_ids) for job in jobs]


def test_the_oldest_and_its_nearest_neighbours_go_together() -> None:
    queue = EmbeddingQueue()
    queue.add(embed(1, 10, 100))
    queue.add(embed(2, 11, 9, 1))
    queue.add(embed(3, 50))
    assert lengths(queue.next_pass(30)) == [9, 10, 11]
    assert lengths(queue.next_pass(30)) == [100]
    assert lengths(queue.next_pass(64)) == [1, 50]
    assert queue.next_pass(64) == []


def test_a_pass_is_not_mostly_padding() -> None:
    queue = EmbeddingQueue()
    queue.add(embed(1, 60, *[1] * 500))
    assert lengths(queue.next_pass(64)) == [1, 60]
    assert len(queue.next_pass(64)) == 64


def test_a_pass_has_a_limit_of_texts() -> None:
    queue = EmbeddingQueue()
    queue.add(embed(1, *[1] * (MAX_TEXTS + 5)))
    assert len(queue.next_pass(10**6)) == MAX_TEXTS
    assert len(queue.next_pass(10**6)) == 5


def test_an_aborted_request_is_neither_computed_nor_answered() -> None:
    queue = EmbeddingQueue()
    queue.add(embed(1, 3))
    queue.add(embed(2, 3, 4))
    queue.add(embed(3, 3))
    jobs = queue.next_pass(6)
    queue.abort([1, 2, 99])
    assert [job.request_id for job in jobs] == [1, 2]
    assert queue.take(jobs, [b"a", b"b"]) == []
    assert [job.request_id for job in queue.next_pass(100)] == [3]


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=12),
    st.integers(1, 64),
    st.data(),
)
def test_every_text_is_computed_once_and_every_request_answered_whole(
    requests: list[list[int]], budget: int, data: st.DataObject
) -> None:
    queue, answered, waiting = EmbeddingQueue(), {}, list(enumerate(requests))
    oldest: list[tuple[int, int]] = []
    while waiting or queue.has_waiting:
        if waiting and (not queue.has_waiting or data.draw(st.booleans())):
            request_id, texts = waiting.pop(0)
            queue.add(embed(request_id, *texts))
            oldest += [(request_id, index) for index in range(len(texts))]
            continue
        jobs = queue.next_pass(budget)
        assert oldest[0] in [(job.request_id, job.index) for job in jobs], "who came first goes first"
        assert len(jobs) == 1 or sum(lengths(jobs)) <= budget
        assert len(jobs) == 1 or max(lengths(jobs)) * len(jobs) <= 2 * budget
        for job in jobs:
            oldest.remove((job.request_id, job.index))
        vectors = [struct.pack("<2I", job.index, len(job.token_ids)) for job in jobs]
        for answer in queue.take(jobs, vectors):
            assert isinstance(answer, Embedded)
            answered[answer.request_id] = [struct.unpack("<2I", vector) for vector in answer.vectors]
    assert answered == {number: list(enumerate(texts)) for number, texts in enumerate(requests)}


# ---- the engine over it


def run(engine: EmbeddingEngine, *, is_shared: bool = False) -> list[Embedded | Failed]:
    answers: list[Embedded | Failed] = []
    while engine.has_work:
        answers += engine.advance(is_shared=is_shared)
    return answers


def test_many_requests_of_one_text_are_one_pass() -> None:
    engine = EmbeddingEngine(FakeRunner())
    for number in range(20):
        assert engine.add(embed(number, 3)) == []
    answers = run(engine)
    assert {answer.request_id for answer in answers} == set(range(20))
    assert all(isinstance(answer, Embedded) and answer.vectors == [struct.pack("<2f", 3, 20)] for answer in answers)


def test_beside_somebody_who_generates_passes_are_half_as_long() -> None:
    engine = EmbeddingEngine(FakeRunner())  # passes of 64 tokens
    engine.add(embed(1, 8, 8, 8, 8, 8, 8, 8, 8))
    assert engine.advance(is_shared=True) == []
    (answer,) = engine.advance(is_shared=True)
    assert isinstance(answer, Embedded)
    assert answer.vectors == [struct.pack("<2f", 8, 4)] * 8


def test_a_long_text_is_computed_in_pieces_between_which_others_step() -> None:
    engine = EmbeddingEngine(FakeRunner())
    engine.add(embed(1, 100))
    assert [engine.advance(is_shared=True) for _ in range(3)] == [[], [], []]
    (answer,) = engine.advance(is_shared=True)
    assert answer.request_id == 1
    assert not engine.has_work


def test_a_pass_that_nobody_waits_for_any_more_ends() -> None:
    engine = EmbeddingEngine(FakeRunner())
    engine.add(embed(1, 300))
    assert engine.advance(is_shared=False) == []
    engine.add(embed(2, 1))
    engine.abort([1])
    (answer,) = engine.advance(is_shared=False)
    assert isinstance(answer, Embedded)
    assert answer.request_id == 2


def test_a_vector_that_is_not_finite_ends_its_request_alone() -> None:
    engine = EmbeddingEngine(FakeRunner(bad_tokens=frozenset({7})))
    engine.add(Embed(request_id=1, prompts=[[1], [7], [7, 7]]))
    engine.add(Embed(request_id=2, prompts=[[1]]))
    failed, answer = sorted(run(engine), key=lambda answer: answer.request_id or 0)
    assert isinstance(failed, Failed)
    assert failed.error.startswith("the model computed an embedding that is not finite (NaN or infinity) for input 1;")
    assert isinstance(answer, Embedded)
    assert answer.request_id == 2


def test_a_pass_that_fails_ends_its_requests_and_no_others() -> None:
    def burn(jobs: object) -> None:
        raise RuntimeError("the device is on fire")

    runner = FakeRunner(before_vectors=burn)
    engine = EmbeddingEngine(runner)
    engine.add(embed(1, 40))
    engine.add(embed(2, 40))
    with pytest.raises(RuntimeError):
        engine.advance(is_shared=False)
    assert engine.fail("it burns", "internal") == [Failed(error="it burns", kind="internal", request_id=1)]
    runner.before_vectors = lambda jobs: None
    assert [answer.request_id for answer in run(engine)] == [2]


def test_texts_that_wait_for_an_adapter_that_goes_end_and_no_others() -> None:
    engine = EmbeddingEngine(FakeRunner())
    engine.add(Embed(request_id=1, prompts=[[1], [2]], adapter=3))
    engine.add(embed(2, 1))
    (failed,) = engine.end_adapter(3)
    assert (failed.request_id, failed.kind) == (1, "invalid")
    (answer,) = run(engine)
    assert isinstance(answer, Embedded)
    assert answer.request_id == 2


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (Embed(request_id=1, prompts=[[1], []]), "input 1 has 0 tokens; the model takes 1 to 4096"),
        (Embed(request_id=1, prompts=[[1] * 4097]), "input 0 has 4097 tokens"),
        (Embed(request_id=1, prompts=[[1, 50]]), "input 0 holds token id 50, but the model's ids are 0 to 49"),
        (Embed(request_id=1, prompts=[[-1]]), "input 0 holds token id -1"),
        (Embed(request_id=1, prompts=[[1]], is_pairs=True), "this model gives vectors and has no head"),
        (Embed(request_id=1, prompts=[[1]], second_starts=[1, 2]), "2 second texts were given for 1 texts"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(request_: Embed, complaint: str) -> None:
    engine = EmbeddingEngine(FakeRunner())
    with pytest.raises(EngineError, match=complaint):
        engine.add(request_)
    assert not engine.has_work


def test_no_texts_are_no_vectors() -> None:
    assert EmbeddingEngine(FakeRunner()).add(embed(4)) == [Embedded(request_id=4, vectors=[])]
