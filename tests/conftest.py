"""Puts `code/` and `process_data/` on the path, as their scripts have them."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in ("code", "process_data"):
    sys.path.insert(0, str(ROOT / folder))


def pytest_configure(config):
    config.addinivalue_line(
        "filterwarnings", "ignore:.*deprecated - use:DeprecationWarning"
    )  # abctoolkit, at its import
