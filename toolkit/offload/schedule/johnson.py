"""Johnson's rule, and how a sequence of jobs behaves like one job under it."""

from typing import NamedTuple

Key = tuple[int, float]


class Pair(NamedTuple):
    """A job of two stages: `a` seconds before its `b` seconds of upload may begin.

    For a sequence of jobs, a = Cmax - sum g and b = Cmax - sum f (Kurisu 1976): placed in any
    schedule as one piece, it acts exactly as a single job (a, b).
    """

    a: float
    b: float

    @property
    def key(self) -> Key:
        """Sorting key of Johnson's rule (1954): uploads heavier than compute first."""
        return (0, self.a) if self.a < self.b else (1, -self.b)

    def then(self, after: "Pair") -> "Pair":
        """The job that acts as this one immediately followed by another; associative."""
        return Pair(
            self.a + max(0.0, after.a - self.b),
            after.b + max(0.0, self.b - after.a),
        )
