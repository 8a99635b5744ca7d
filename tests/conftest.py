"""Puts `code/` and `process_data/` on the path, as their scripts have them."""

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
for folder in ("code", "process_data"):
    sys.path.insert(0, str(ROOT / folder))

# The values compared are those of the CPU, also on a machine with a GPU; test_gpu and test_waits ask for the GPU themselves.
os.environ.setdefault("ACCELERATE_USE_CPU", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, where scripts would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.addinivalue_line(
        "filterwarnings", "ignore:.*deprecated - use:DeprecationWarning"
    )  # abctoolkit, at its import


def pytest_collection_modifyitems(items):
    """A test that is given no cases is an error, where pytest would skip it."""
    for item in items:
        for mark in item.iter_markers("skip"):
            if mark.kwargs.get("reason", "").startswith("got empty parameter set"):
                raise pytest.UsageError(f"{item.nodeid}: {mark.kwargs['reason']}")
