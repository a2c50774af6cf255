"""Use a target as the machine that models are timed on."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from offload.errors import InputError

from offload_runtimes.deploy.agent_client import AgentClient, connect
from offload_runtimes.deploy.stages import find_runtime
from offload_runtimes.deploy.targets import TargetConfig
from offload_runtimes.measure.target_machine import TargetMachine


class _Connection:
    """The worker's streams, for a thread that waits for them."""

    def __init__(self, agent: AgentClient, loop: asyncio.AbstractEventLoop) -> None:
        self._agent = agent
        self._loop = loop

    def write(self, data: bytes) -> None:
        self._wait(self._agent.write(data))

    def readline(self) -> bytes:
        line: bytes = self._wait(self._agent.reader.readline())
        return line

    def read(self, size: int) -> bytes:
        data: bytes = self._wait(self._read(size))
        return data

    async def _read(self, size: int) -> bytes:
        pieces = []
        while size and (piece := await self._agent.reader.read(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


@contextmanager
def target_machine(target: TargetConfig) -> Iterator[TargetMachine]:
    """Start the measuring worker on a target; it ends with the block.

    Raises:
        InputError: the target has no runtime, or refuses the login.
        ServerError: the target cannot be reached.
    """
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="target", daemon=True)
    thread.start()
    opened = connect(target)

    def wait(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    try:
        agent = wait(opened.__aenter__())
        try:
            wait(_start_worker(agent))
            yield TargetMachine(target.name, _Connection(agent, loop))
        finally:
            wait(opened.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start_worker(agent: AgentClient) -> None:
    facts = await agent.call("facts")
    python = await find_runtime(agent, facts["root"])
    if python is None:
        raise InputError(
            f"{agent.target.name} has no runtime to measure with: run `offload device init"
            f" {agent.target.name}` first"
        )
    await agent.call("become", command=[python, "-m", "offload_runtimes", "measure"])
