"""Small models that each hold one thing which is easily split wrong."""

from tests.toolkit.bundle.traps import bodies, files, kinds, values
from tests.toolkit.bundle.traps.trap import TRAPS, Arrays, Trap, text

__all__ = ["TRAPS", "Arrays", "Trap", "bodies", "files", "kinds", "text", "values"]
