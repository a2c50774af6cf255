"""Measure machines, links, encodings and plans, and prove that a bundle's outputs are right."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str], None]
"""Called with a phrase before each step of a long measurement."""
