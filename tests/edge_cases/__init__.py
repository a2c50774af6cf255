"""Small models with one property each that is easily split wrong."""

from tests.edge_cases import bodies, files, kinds, values
from tests.edge_cases.edge_case import EDGE_CASES, Arrays, EdgeCase, text

__all__ = ["EDGE_CASES", "Arrays", "EdgeCase", "bodies", "files", "kinds", "text", "values"]
