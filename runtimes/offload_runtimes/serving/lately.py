"""Which parts were short when they were last run: waking a worker for them would not pay."""

_SHORT_S = 0.0005  # below this, waking a worker costs more than a message that waits


class Lately:
    """How long each part of a bundle took when it was last run, and on how many bytes."""

    def __init__(self) -> None:
        self._runs: dict[str, tuple[int, float]] = {}

    def took(self, part: str, size_bytes: int, seconds: float) -> None:
        """Note a run."""
        self._runs[part] = size_bytes, seconds

    def is_short(self, part: str, size_bytes: int) -> bool:
        """Whether the last run was, on no fewer bytes: more of them may take any time."""
        then_bytes, seconds = self._runs.get(part, (0, _SHORT_S))
        return seconds < _SHORT_S and size_bytes <= then_bytes
