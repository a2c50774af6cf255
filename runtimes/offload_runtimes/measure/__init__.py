"""Measure machines, links, encodings and plans, and prove that a bundle's answers are right."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str], None]
"""Told what a long measurement is doing, in a few words."""
