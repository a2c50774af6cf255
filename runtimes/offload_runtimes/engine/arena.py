"""Limit the memory that onnxruntime allocates: one arena for several models.

How onnxruntime's own limit behaves, found by experiments with version 1.32:

- A run that needs more fails with an error and frees its memory, even if it asks for terabytes.
- Weights inside a model's file, and weights that a kernel repacks, are allocated regardless of the
  limit. Once they exceed it, the number of bytes left wraps around and nothing is limited any
  more: `Arena.check` detects that after a model was loaded. Mapped weight files are not counted.
- Growing by powers of two wastes up to half of the limit. Growing as requested leaves pieces that
  never join: a large run fails after small ones until free pieces are returned (`Arena.sweep`).
- It limits the CPU's memory; other providers have limits of their own. Memory that a kernel takes
  from the C++ heap (strings, mostly) is not counted.
"""

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
from offload.errors import InputError
from offload.units import format_bytes

# ConstantOfShape: "shape" -> "y", an array of zeros; a test builds it again.
PROBE = (
    "CAo6RwobCgVzaGFwZRIBeSIPQ29uc3RhbnRPZlNoYXBlEgFnWhMKBX"
    "NoYXBlEgoKCAgHEgQKAggBYhAKAXkSCwoJCAESBQoDEgFuQgQKABAV"
)
_AS_REQUESTED = 1
_TOO_MANY = 1 << 58  # floats: more than any machine has, and the bytes still fit 64 bits
_NO_LIMIT_BYTES = 1 << 50
_LEFT = re.compile(r"Available memory of (\d+) is smaller than requested bytes of \d+")
_REFUSED = re.compile(r"Failed to allocate memory for requested buffer of size (\d+)|bad_alloc")
_one_at_a_time = threading.Lock()


class Arena:
    """The memory of all models that are loaded with it; made by `arena_of`.

    Attributes:
        limit_bytes: the most bytes of all of them at one time, weights included.
        rule: the option that set the limit, for messages: `--max-memory 300 MB`.
    """

    def __init__(self, limit_bytes: int, rule: str) -> None:
        self.limit_bytes = limit_bytes
        self.rule = rule
        self.is_open = True
        kinds = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
        memory = ort.OrtMemoryInfo("Cpu", kinds[0], 0, kinds[1])
        config = {"max_mem": limit_bytes, "arena_extend_strategy": _AS_REQUESTED}
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg(config))  # replaces the last one
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = 1
        self.lend(settings)
        self._probe = ort.InferenceSession(
            base64.b64decode(PROBE), settings, providers=["CPUExecutionProvider"]
        )
        self._returning = _quiet()
        self._returning.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def lend(self, settings: ort.SessionOptions) -> None:
        """Make a session with these settings take its memory from this arena."""
        assert self.is_open, "the arena is closed: onnxruntime may use another one by now"
        settings.add_session_config_entry("session.use_env_allocators", "1")

    def left_bytes(self) -> int | None:
        """Bytes that may still be allocated; None when nothing is limited any more.

        The error of a run that asks for too much states it.
        """
        try:
            self._probe.run(None, {"shape": np.array([_TOO_MANY], np.int64)}, _quiet())
        except Exception as error:  # noqa: BLE001  its text is read
            match = _LEFT.search(str(error))
            return int(match[1]) if match else None
        return None

    def check(self, name: str) -> None:
        """InputError when the models loaded so far exceed the limit."""
        if self.left_bytes() is None:
            raise InputError(
                f"{name} cannot be loaded: its weights take more than {self.rule} leaves for"
                f" models ({format_bytes(self.limit_bytes)}): allow more"
            )

    def sweep(self) -> None:
        """Return free pieces to the system, so that a large one fits."""
        self._probe.run(None, {"shape": np.zeros(1, np.int64)}, self._returning)


@contextmanager
def arena_of(limit_bytes: int, rule: str) -> Iterator[Arena]:
    """A new arena for models that are loaded inside this block.

    onnxruntime has one arena for the whole process, and a session keeps the one that it was made
    with: so each server of a process may have its own.

    Raises:
        InputError: this version of onnxruntime cannot limit memory.
    """
    with _one_at_a_time:
        try:
            arena = Arena(limit_bytes, rule)
        except Exception as error:
            raise _cannot(rule) from error
        if arena.left_bytes() is None:
            raise _cannot(rule)
        try:
            yield arena
        finally:
            arena.is_open = False


@contextmanager
def shared_arena() -> Iterator[Arena | None]:
    """An arena without a limit, shared by models that run one at a time.

    None where this version of onnxruntime has no arena, or another thread uses it: then each model
    has memory of its own.
    """
    if not _one_at_a_time.acquire(blocking=False):
        yield None
        return
    try:
        arena = Arena(_NO_LIMIT_BYTES, "this machine")
    except Exception:  # noqa: BLE001  an older onnxruntime
        arena = None
    try:
        yield arena
    finally:
        if arena is not None:
            arena.sweep()
            arena.is_open = False
        _one_at_a_time.release()


def _cannot(rule: str) -> InputError:
    return InputError(f"onnxruntime {ort.__version__} cannot enforce {rule}: install a newer one")


def lack_of_memory(error: Exception) -> str | None:
    """The lack of memory in ORT's error, as the end of a sentence; None: another error."""
    if _LEFT.search(str(error)):
        return "needs more memory than the server allows"
    match = _REFUSED.search(str(error))
    if not match and not isinstance(error, MemoryError):
        return None
    size = f" ({format_bytes(int(match[1]))} at once)" if match and match[1] else ""
    return f"needs more memory than this machine has{size}"


def _quiet() -> ort.RunOptions:
    options = ort.RunOptions()
    options.log_severity_level = 4
    return options
