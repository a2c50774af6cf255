"""Reach a target: an agent in a child process, or on another machine over SSH."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from offload.errors import InputError

from offload_runtimes.deploy.agent_client import AgentClient, command, payload
from offload_runtimes.deploy.targets import TargetConfig

_REPLY_LIMIT_BYTES = 1 << 24


@contextlib.asynccontextmanager
async def connect(place: TargetConfig) -> AsyncIterator[AgentClient]:
    """An agent at work on a target; it ends with the block, a release on trial is taken back.

    Raises:
        InputError: the target refuses us, or is not the one it should be.
        ServerError: it can't be reached.
    """
    opened = _here(place) if place.ssh is None else _over_ssh(place)
    async with opened as channel:
        await channel.start()
        yield channel


@contextlib.asynccontextmanager
async def _here(place: TargetConfig) -> AsyncIterator[AgentClient]:
    """The agent in a child process of this Python."""
    process = await asyncio.create_subprocess_exec(
        *command(sys.executable, len(payload(place.root))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_REPLY_LIMIT_BYTES,
    )
    replies, requests, errors = process.stdout, process.stdin, process.stderr
    assert replies is not None
    assert requests is not None
    assert errors is not None
    try:
        yield AgentClient(place, replies, requests, errors, process.wait)
    finally:
        requests.close()
        await process.wait()


def _over_ssh(place: TargetConfig) -> contextlib.AbstractAsyncContextManager[AgentClient]:
    try:
        from offload_runtimes.deploy.ssh import over_ssh
    except ImportError as error:
        raise InputError(
            f"{place.name} is reached over SSH, which needs the package asyncssh:"
            " pip install 'onnx-offload[deploy]'"
        ) from error
    return over_ssh(place)
