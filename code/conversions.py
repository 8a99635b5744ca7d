"""The one way from here to the converters of `process_data/`: `from conversions import musicxml`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "process_data"))
import abc_text
import interleaving
import musicxml
import templates
import workers
import xml_abc
from mtf import midi_to_mtf

__all__ = ["abc_text", "interleaving", "midi_to_mtf", "musicxml", "templates", "workers", "xml_abc"]
