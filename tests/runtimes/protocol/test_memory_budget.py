"""The memory budget of a server: reservations never exceed the limit and are all released."""

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from offload_runtimes.protocol.memory_budget import MemoryBudget, Reservation

LIMIT = 100
WHICH = st.integers(0, 4)


class MemoryMachine(RuleBasedStateMachine):
    """Reservations, compared with a plain list of the bytes that each holds."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryBudget(LIMIT)
        self.reservations = [self.memory.reserve(lambda: None) for _ in range(5)]
        self.held = [0] * 5

    @rule(which=WHICH, size=st.integers(0, 120), idle=st.booleans())
    def hold(self, which: int, size: int, idle: bool) -> None:
        others = sum(self.held) - self.held[which]
        fits = size <= self.held[which] or others + size <= LIMIT
        assert self.reservations[which].hold(size, idle=idle) == fits
        if fits:
            self.held[which] = size

    @rule(which=WHICH)
    def vanish(self, which: int) -> None:
        assert self.reservations[which].hold(0)
        self.held[which] = 0
        self.reservations[which] = self.memory.reserve(lambda: None)

    @invariant()
    def sums_agree(self) -> None:
        assert self.memory.held_bytes == sum(self.held) <= LIMIT
        assert [reservation.held_bytes for reservation in self.reservations] == self.held


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=100, deadline=None)


def test_an_idle_reservation_is_evicted_once() -> None:
    memory, evicted = MemoryBudget(LIMIT, patience_s=-1.0), []
    idle = memory.reserve(lambda: evicted.append("idle"))
    busy = memory.reserve(lambda: evicted.append("busy"))
    asking = memory.reserve(lambda: evicted.append("asking"))
    assert busy.hold(40, idle=False)
    assert idle.hold(40)
    assert not asking.hold(40)
    assert not asking.hold(40)
    assert evicted == ["idle"]
    idle.hold(0)
    assert asking.hold(40)


def test_a_reservation_in_use_is_not_evicted() -> None:
    memory = MemoryBudget(LIMIT, patience_s=-1.0)
    used = memory.reserve(lambda: pytest.fail("evicted"))
    assert used.hold(LIMIT)
    used.use()
    assert not memory.reserve(lambda: None).hold(1)


def test_no_eviction_before_the_patience_ends() -> None:
    memory = MemoryBudget(LIMIT, patience_s=3600)
    idle = memory.reserve(lambda: pytest.fail("evicted"))
    assert idle.hold(LIMIT)
    assert not memory.reserve(lambda: None).hold(1)


def test_without_a_limit_everything_is_allowed() -> None:
    assert MemoryBudget().reserve(lambda: None).hold(1 << 60)


def test_many_threads_keep_the_limit() -> None:
    memory = MemoryBudget(LIMIT)
    worst = [0]

    def work(reservation: Reservation) -> None:
        for size in range(2000):
            reservation.hold(size % 60)
            worst[0] = max(worst[0], memory.held_bytes)
        reservation.hold(0)

    reservations = [memory.reserve(lambda: None) for _ in range(4)]
    threads = [threading.Thread(target=work, args=(reservation,)) for reservation in reservations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst[0] <= LIMIT
    assert memory.held_bytes == 0
