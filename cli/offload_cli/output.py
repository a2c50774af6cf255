"""Print results to stdout as text or JSON, and remarks, warnings and errors to stderr."""

import codecs
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

# Width without a terminal: tensor names in the tables of a file or pipe are not broken.
PIPE_COLUMNS = 240

# Phrases that count, like `running LO (3 of 30)`, and what else differs in alike phrases.
_COUNT = re.compile(r"\(?\b\d+ of \d+\)?$")
_NUMBER = re.compile(r"[\d.]+ *[kMG]?(?=bit/s|B\b)|[\d.]+")
_QUIET_S = 10.0

ASCII = {"█": "#", "▓": "=", "…": "...", "×": "x", "µ": "u", "→": "->", "–": "-", "—": "-"}


def replace_missing_characters() -> None:
    """Let stdout and stderr take any character, whatever their encoding.

    A character that the encoding lacks is written in ASCII: by `ASCII`, otherwise as `\\uXXXX`.
    """

    def replace(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        missing = error.object[error.start : error.end]
        shown = (ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing)
        return "".join(shown), error.end

    codecs.register_error("stand-in", replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="stand-in")


class Format(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


class Output:
    """Prints a command's result in the chosen format, and everything else to stderr."""

    def __init__(self, form: Format = Format.TEXT) -> None:
        self.form = form
        self._out = _console()
        if not self._out.is_terminal:
            self._out.width = PIPE_COLUMNS
        self._err = _console(stderr=True)

    @property
    def is_json(self) -> bool:
        """Whether stdout gets one JSON value and nothing else."""
        return self.form is Format.JSON

    def result(self, value: Any, text: str | None = None) -> None:
        """Print the command's result: `value` as JSON, or `text` (default: the value)."""
        if self.is_json:
            json.dump(value, sys.stdout, indent=2, allow_nan=False)
            sys.stdout.write("\n")
            sys.stdout.flush()
        else:
            self.text(text if text is not None else str(value))

    def text(self, text: str = "") -> None:
        """Print lines in text format; nothing in JSON format."""
        if not self.is_json:
            self._out.print(text)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = ""
    ) -> None:
        """Print a table in text format; columns named `>x` are aligned to the right."""
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
        """A spinner on stderr that shows the latest step; plain lines without a terminal.

        Of lines that differ only in numbers or count, only one is printed each ten seconds.
        """
        if not self._err.is_terminal:
            yield _Collapsed(self.remark)
            return
        with self._err.status("starting") as status:
            yield lambda phrase: status.update(Text(phrase))


class _Collapsed:
    """Passes on the first of several alike phrases, and one each ten seconds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._kind, self._due_s = write, "", 0.0

    def __call__(self, phrase: str) -> None:
        is_count = _COUNT.search(phrase) is not None
        kind = phrase.split()[0] if is_count else _NUMBER.sub("", phrase)
        if kind != self._kind or time.monotonic() >= self._due_s:
            self._kind, self._due_s = kind, time.monotonic() + _QUIET_S
            self._write(phrase)


def _console(stderr: bool = False) -> Console:
    """A console that prints `[bold]` and `:smile:` as they are: they can be tensor names."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)
