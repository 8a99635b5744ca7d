"""What the converters of abctoolkit print, as a list: they are scripts that tell everything to stderr."""

import contextlib
import io
from collections.abc import Iterator

MAX_LINES = 50  # of one file: a score of 700 bars may have 700 overlapping notes


@contextlib.contextmanager
def printed_lines() -> Iterator[list[str]]:
    """Within the block, what is printed to stdout and stderr goes to the list, one line each, when the block ends.

    Process-wide, as sys.stderr is: not for several threads.
    """
    lines: list[str] = []
    sink = io.StringIO()
    try:
        with contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
            yield lines
    finally:
        lines += [line.removeprefix("-- ").strip() for line in sink.getvalue().splitlines() if line.strip()]


def shortened(lines: list[str]) -> list[str]:
    """Each line once, in order; those over MAX_LINES are counted."""
    lines = list(dict.fromkeys(lines))
    more = len(lines) - MAX_LINES
    return lines if more <= 0 else [*lines[:MAX_LINES], f"... and {more} more"]
