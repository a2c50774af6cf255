"""Make onnxruntime slow in every Python that has this folder on its path: a slow device for tests.

A session's run lasts OFFLOAD_TEST_SLOWDOWN times as long as its fastest run so far, so that other
work on this machine does not make the device slower. Only onnxruntime is slowed down.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

_MODULE = "onnxruntime.capi.onnxruntime_inference_collection"
_SLOWDOWN = float(os.environ.get("OFFLOAD_TEST_SLOWDOWN", "1"))


def _slowed(run: Callable[..., Any], name: str) -> Callable[..., Any]:
    def slow_run(session: Any, *arguments: Any, **options: Any) -> Any:
        start_s = time.perf_counter()
        result = run(session, *arguments, **options)
        took_s = time.perf_counter() - start_s
        fastest: dict[str, float] = session.__dict__.setdefault("_fastest_s", {})
        # The first run also allocates memory; later runs take equally long.
        fastest[name] = min(fastest.get(name, took_s), took_s)
        time.sleep(max(0.0, fastest[name] * _SLOWDOWN - took_s))
        return result

    return slow_run


class _Hook(importlib.abc.MetaPathFinder):
    """Slows the sessions of onnxruntime down when it is imported."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            for name in ("run", "run_with_ort_values", "run_with_iobinding"):
                for kind in (module.Session, module.InferenceSession):
                    if name in vars(kind):
                        setattr(kind, name, _slowed(getattr(kind, name), name))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _SLOWDOWN > 1:
    sys.meta_path.insert(0, _Hook())
