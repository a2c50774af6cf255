"""The table that ends every benchmark: measure, goal, result, and whether it is met."""

from collections.abc import Sequence

from offload_cli.bench.results import Goal

__all__ = ["Goal", "report"]


def report(goals: Sequence[Goal]) -> int:
    """Print the table; return the exit code, 0 if every goal is met."""
    head = ("measure", "goal", "measured", "met")
    rows = [goal.row for goal in goals]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, tuple("-" * width for width in widths), *rows):
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |")
    return 0 if all(goal.met for goal in goals) else 1
