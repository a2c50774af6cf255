"""One memory of many sessions: never more than allowed, and nothing of it is ever lost."""

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from offload_runtimes.protocol.memory_budget import MemoryBudget, Reservation

LIMIT = 100
WHICH = st.integers(0, 4)


class MemoryMachine(RuleBasedStateMachine):
    """Accounts against a plain list of what each was last allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryBudget(LIMIT)
        self.accounts = [self.memory.reserve(lambda: None) for _ in range(5)]
        self.held = [0] * 5

    @rule(which=WHICH, size=st.integers(0, 120), still=st.booleans())
    def hold(self, which: int, size: int, still: bool) -> None:
        others = sum(self.held) - self.held[which]
        fits = size <= self.held[which] or others + size <= LIMIT
        assert self.accounts[which].hold(size, idle=still) == fits
        if fits:
            self.held[which] = size

    @rule(which=WHICH)
    def vanish(self, which: int) -> None:
        assert self.accounts[which].hold(0)
        self.held[which] = 0
        self.accounts[which] = self.memory.reserve(lambda: None)

    @invariant()
    def sums_agree(self) -> None:
        assert self.memory.held_bytes == sum(self.held) <= LIMIT
        assert [account.held_bytes for account in self.accounts] == self.held


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=100, deadline=None)


def test_who_lies_still_gives_way_once() -> None:
    memory, evicted = MemoryBudget(LIMIT, patience_s=-1.0), []
    still = memory.reserve(lambda: evicted.append("still"))
    busy = memory.reserve(lambda: evicted.append("busy"))
    asking = memory.reserve(lambda: evicted.append("asking"))
    assert busy.hold(40, idle=False)
    assert still.hold(40)
    assert not asking.hold(40)
    assert not asking.hold(40)
    assert evicted == ["still"]
    still.hold(0)
    assert asking.hold(40)


def test_nobody_is_evicted_before_its_time() -> None:
    memory = MemoryBudget(LIMIT, patience_s=3600)
    still = memory.reserve(lambda: pytest.fail("evicted"))
    assert still.hold(LIMIT)
    assert not memory.reserve(lambda: None).hold(1)


def test_without_a_limit_everything_is_allowed() -> None:
    assert MemoryBudget().reserve(lambda: None).hold(1 << 60)


def test_many_threads_keep_the_limit() -> None:
    memory = MemoryBudget(LIMIT)
    worst = [0]

    def work(account: Reservation) -> None:
        for size in range(2000):
            account.hold(size % 60)
            worst[0] = max(worst[0], memory.held_bytes)
        account.hold(0)

    accounts = [memory.reserve(lambda: None) for _ in range(4)]
    threads = [threading.Thread(target=work, args=(account,)) for account in accounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst[0] <= LIMIT
    assert memory.held_bytes == 0
