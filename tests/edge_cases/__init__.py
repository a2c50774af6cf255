"""Small models that each hold one thing which is easily split wrong."""

from tests.edge_cases import bodies, files, kinds, values
from tests.edge_cases.trap import TRAPS, Arrays, Trap, text

__all__ = ["TRAPS", "Arrays", "Trap", "bodies", "files", "kinds", "text", "values"]
