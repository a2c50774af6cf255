"""The one output object: results on stdout, remarks on stderr, `--format json` for nothing."""

import codecs
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

# Wide enough that a table in a file or a pipe never breaks a tensor's name.
PIPE_COLUMNS = 240

_ASCII = {"█": "#", "▓": "=", "…": "...", "×": "x", "µ": "u", "→": "->", "–": "-", "—": "-"}


def write_any_encoding() -> None:
    """Let stdout and stderr take any character, whatever their encoding.

    What the encoding lacks is written as its usual ASCII stand-in, else as `\\uXXXX`.
    """

    def stand_in(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        missing = error.object[error.start : error.end]
        shown = (_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing)
        return "".join(shown), error.end

    codecs.register_error("stand-in", stand_in)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="stand-in")


class Format(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


class Output:
    """Prints results in the chosen format; everything that is not a result goes to stderr."""

    def __init__(self, form: Format = Format.TEXT) -> None:
        self.form = form
        self._out = _console()
        if not self._out.is_terminal:
            self._out.width = PIPE_COLUMNS
        self._err = _console(stderr=True)

    @property
    def is_json(self) -> bool:
        """Whether stdout must hold one JSON value and nothing else."""
        return self.form is Format.JSON

    def result(self, value: Any, text: str | None = None) -> None:
        """Print the verb's result: `value` as JSON, or `text` (default: the value itself)."""
        if self.is_json:
            json.dump(value, sys.stdout, indent=2, allow_nan=False)
            sys.stdout.write("\n")
            sys.stdout.flush()
        else:
            self.text(text if text is not None else str(value))

    def text(self, text: str = "") -> None:
        """Print lines meant for people only."""
        if not self.is_json:
            self._out.print(text)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = ""
    ) -> None:
        """Print a table for people; columns named `>x` are aligned to the right."""
        if self.is_json:
            return
        table = Table(title=title or None, title_justify="left", header_style="bold")
        for column in columns:
            right = column.startswith(">")
            table.add_column(
                column.lstrip(">"), justify="right" if right else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self._out.print(table)

    def remark(self, text: str) -> None:
        """Print a remark to stderr."""
        self._err.print(text)

    def warning(self, text: str) -> None:
        """Print a warning to stderr."""
        self._err.print(f"warning: {text}", style="yellow")

    def error(self, text: str) -> None:
        """Print an error to stderr."""
        self._err.print(f"error: {text}", style="red")

    def progress(self) -> Progress:
        """A progress bar on stderr; silent when stderr is not a terminal."""
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._err,
            transient=True,
            disable=not self._err.is_terminal,
        )

    @contextmanager
    def steps(self) -> Iterator[Callable[[str], None]]:
        """A spinner on stderr whose phrase the block changes; plain lines without a terminal."""
        if not self._err.is_terminal:
            yield self.remark
            return
        with self._err.status("starting") as status:
            yield lambda phrase: status.update(Text(phrase))


def _console(stderr: bool = False) -> Console:
    """A console that prints names as they are: `[bold]` and `:smile:` are no markup there."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)
