"""Serve bundles with Ray Serve: on several machines or GPUs, with autoscaling.

Needs the extra `ray`: `pip install 'onnx-offload[ray]'`. Nothing here is imported unless it is
used, and Ray only when an application is made.
"""

from offload_runtimes.ray.application import SERVICER, app

__all__ = ["SERVICER", "app"]
