"""The one way from here to the modules of `code/` that both folders use: `from shared import files`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "code"))
import files
import notation
import records
import sources
from files import InputError

__all__ = ["InputError", "files", "notation", "records", "sources"]
