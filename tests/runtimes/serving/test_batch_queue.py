"""The batch queue: nothing is lost or taken twice, sessions take turns, waiting is bounded."""

import threading
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from offload_runtimes.serving.batching import BatchQueue

ITEMS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("KL"), st.integers(1, 3)), max_size=30
)


def nobody() -> str:
    return ""


@given(ITEMS, st.integers(1, 8))
def test_every_item_is_taken_once_in_its_order(
    items: list[tuple[str, str, int]], room: int
) -> None:
    """Each item has a turn; a session's items of a kind keep their order."""
    batches: BatchQueue[str, int] = BatchQueue(room)
    for number, (session, kind, rows) in enumerate(items):
        batches.add(kind, session, number, rows)
    taken: list[int] = []
    for turn, (session, kind, _) in enumerate(items):
        found = batches.take(kind, session, nobody)
        assert all(items[number][1] == kind for number in found)
        assert len(found) <= 1 or sum(items[number][2] for number in found) <= room
        taken += found
        assert batches.spent == len(taken) - turn - 1
    assert sorted(taken) == list(range(len(items)))
    for session, kind in {(session, kind) for session, kind, _ in items}:
        own = [number for number in taken if items[number][:2] == (session, kind)]
        assert own == sorted(own)
    assert batches.spent == 0


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(2, 8))
def test_one_of_each_session_before_a_second_of_any(sessions: list[str], room: int) -> None:
    batches: BatchQueue[str, str] = BatchQueue(room)
    for session in sessions:
        batches.add("kind", session, session, 1)
    found = Counter(batches.take("kind", sessions[0], nobody))
    wanted = Counter(sessions)
    assert found.total() == min(room, len(sessions))
    for session, count in found.items():
        for other in wanted:
            assert found[other] >= min(count - 1, wanted[other]), session


def test_those_left_out_come_first_the_next_time() -> None:
    batches: BatchQueue[str, str] = BatchQueue(2)
    for session in "abcabc":
        batches.add("kind", session, session, 1)
    assert batches.take("kind", "a", nobody) == ["a", "b"]
    assert batches.take("kind", "b", nobody) == []
    assert batches.take("kind", "c", nobody) == ["c", "a"]


def test_what_is_too_large_waits_for_its_own_turn() -> None:
    batches: BatchQueue[str, str] = BatchQueue(4)
    for session, rows in (("a", 2), ("b", 3), ("c", 2), ("d", 9)):
        batches.add("kind", session, session, rows)
    assert batches.take("kind", "a", nobody) == ["a", "c"]
    assert batches.take("kind", "b", nobody) == ["b"]
    assert batches.take("kind", "c", nobody) == []
    assert batches.take("kind", "d", nobody) == ["d"]


def test_a_dropped_session_is_forgotten() -> None:
    batches: BatchQueue[str, str] = BatchQueue(2)
    for session in "aabb":
        batches.add("kind", session, session, 1)
    assert batches.take("kind", "a", nobody) == ["a", "b"]
    batches.drop("b")
    assert batches.spent == 0
    assert batches.take("kind", "b", nobody) == []
    assert batches.take("kind", "a", nobody) == ["a"]


def waiting(batches: BatchQueue[str, str], crowd: str) -> tuple[threading.Thread, list[str]]:
    """A thread that takes a batch for session a, and the items that it took."""
    batches.add("kind", "a", "a", 1)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(batches.take("kind", "a", lambda: crowd)))
    thread.start()
    return thread, found


def test_waiting_ends_with_the_last_open_session() -> None:
    batches: BatchQueue[str, str] = BatchQueue(8, 60)
    thread, found = waiting(batches, "abc")
    batches.add("kind", "b", "b", 1)
    batches.add("other kind", "c", "c", 1)
    thread.join(0.05)
    assert thread.is_alive()
    batches.add("kind", "c", "c", 1)
    thread.join(20)
    assert found == ["a", "b", "c"]


def test_waiting_ends_when_there_is_no_more_room() -> None:
    batches: BatchQueue[str, str] = BatchQueue(2, 60)
    thread, found = waiting(batches, "abc")
    batches.add("kind", "b", "b", 1)
    thread.join(20)
    assert found == ["a", "b"]


def test_waiting_ends_in_time_and_with_the_server() -> None:
    thread, found = waiting(BatchQueue(8, 0.01), "ab")
    thread.join(20)
    assert found == ["a"]
    stopped: BatchQueue[str, str] = BatchQueue(8, 60)
    thread, found = waiting(stopped, "ab")
    stopped.stop()
    thread.join(20)
    assert found == ["a"]


def test_nobody_waits_alone() -> None:
    thread, found = waiting(BatchQueue(8, 60), "a")
    thread.join(20)
    assert found == ["a"]
