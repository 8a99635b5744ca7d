"""The training records of CLaMP 2: their fields and checks, the JSONL file, and the choice of a text in training.

Shared by `code/` and `process_data/`.
"""

import ast
import json
import os
import random
import stat
from array import array
from pathlib import Path

import config
from files import InputError

# Metadata fields hold a text, a list of texts, or nothing.
METADATA = ("title", "composer", "genres", "description", "lyrics", "tags", "ensembles", "instruments")
FIELDS = (*METADATA, "summary_en", "summary_nen", "filepaths")
MUSIC = (".abc", ".mtf")  # suffixes of the files that `filepaths` names
MAX_PYTHON = 2**20  # characters of a text that is tried as Python


class Unfit(ValueError):
    """A record that cannot be used. `kind` is the same for all records with the same fault; str() has the details."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


def is_blank(value: object) -> bool:
    """Whether a value means that a field does not apply: null, blank text, "None", or an empty list."""
    return value is None or value == [] or (isinstance(value, str) and value.strip() in ("", "None"))


def parse(data: bytes) -> dict:
    """Parse a record from JSON. Raises InputError that describes what it is instead."""
    try:
        text = data.decode("utf-8-sig")
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _is_python(data):
            raise InputError("Python's notation, not JSON: write null for None, and double quotes") from None
        raise InputError(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise InputError(f"not a JSON object, but a {type(record).__name__}")
    return record


def _is_python(data: bytes) -> bool:
    """Whether a text is a dict in Python's notation: single quotes, `None`."""
    if len(data) > MAX_PYTHON:
        return False
    try:
        return isinstance(ast.literal_eval(data.decode("utf-8-sig").strip()), dict)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False


def parse_metadata(data: bytes) -> dict:
    """Parse a record from JSON: fields in the order of the format, missing ones as null, others behind them.

    Raises Unfit if it is no JSON object, or a field of metadata holds anything but text.
    """
    try:
        record = parse(data)
    except InputError as error:
        raise Unfit("not a record", str(error)) from None
    for field in METADATA:
        for item in _listed(record.get(field)):
            if item is not None and not isinstance(item, str):
                found = f"{type(item).__name__} {json.dumps(item)[:40]}"
                raise Unfit(f"`{field}` is neither text nor a list of texts", f"it holds {found}")
    return {field: record.get(field) for field in FIELDS} | record


def for_training(record: dict, folder: Path) -> tuple[dict, list[str]]:
    """Prepare a record for training. Returns it, and what was left out of it, one line each.

    Args:
        record: from `parse_metadata`.
        folder: of the JSONL file; `filepaths` are relative to it.

    Raises Unfit if the record cannot be used at all.
    """
    texts = {field: _without_blanks(record[field]) for field in METADATA}
    english, others = _without_blanks(record["summary_en"]), _without_blanks(record["summary_nen"])
    if not all(isinstance(text, str) for text in _listed(english)):
        raise Unfit("`summary_en` is neither text nor a list of texts")
    if not all(isinstance(other, dict) and isinstance(other.get("summary"), str | None) for other in _listed(others)):
        raise Unfit('`summary_nen` is neither {"language": ..., "summary": ...} nor a list of such')
    fit = [other for other in _listed(others) if not is_blank(other.get("summary"))]
    others = fit if isinstance(others, list) and fit else fit[0] if fit else None
    if texts["title"] is None and english is None and others is None:
        raise Unfit("neither a title nor a summary")

    paths = _without_blanks(record["filepaths"])
    if not isinstance(paths, list):
        raise Unfit("`filepaths` is not a list of paths", json.dumps(record["filepaths"])[:80])
    problems = {str(path): _problem(path, folder) for path in paths}
    kept = [path for path in paths if not problems[str(path)]]
    left_out = [f"{path}: {problem}" for path, problem in problems.items() if problem]
    if not kept:
        raise Unfit("none of its `filepaths` can be used", "; ".join(left_out) or "there is none")
    return record | texts | {"summary_en": english, "summary_nen": others, "filepaths": kept}, left_out


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _without_blanks(value: object) -> object:
    if isinstance(value, list):
        return [item for item in value if not is_blank(item)] or None
    return None if is_blank(value) else value


def _problem(path: object, folder: Path) -> str | None:
    """Return why training cannot use a path of `filepaths`, or None."""
    if not isinstance(path, str):
        return "not a path"
    if os.path.isabs(path):
        return f"not relative to {folder}"
    if leaves_folder(path):
        return f"leaves {folder}"
    if not path.lower().endswith(MUSIC):
        return "neither .abc nor .mtf; convert it first"
    try:
        status = os.stat(folder / path)
    except (OSError, ValueError):  # ValueError: a character that no path has
        return f"not in {folder}"
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    return None if status.st_size else "empty"


class Jsonl:
    """The records of a JSONL file, read one at a time through an index of byte offsets. Blank lines are no records.

    Raises InputError if the file is a JSON array.
    """

    def __init__(self, path: Path):
        self.path = path
        self.starts, self.lines = array("q"), array("q")  # byte offset and number of each line that is not blank
        start = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    self.starts.append(start)
                    self.lines.append(number)
                if len(self.starts) == 1 and line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                    raise InputError(f"{path}: a JSON array; write one object a line, without brackets around all")
                start += len(line)

    def __len__(self) -> int:
        return len(self.starts)

    def where(self, index: int) -> str:
        """Return file and line of a record, for messages."""
        return f"{self.path}, line {self.lines[index]}"

    def __getitem__(self, index: int) -> dict:
        """Read a record, counted from 0, with usable `filepaths`. Raises InputError that names file and line."""
        with open(self.path, "rb") as file:
            file.seek(self.starts[index])
            text = file.readline()
        try:
            record = parse(text)
            json.dumps(record, ensure_ascii=False).encode()
            return record | {"filepaths": checked_paths(record.get("filepaths"))}
        except UnicodeEncodeError as error:
            raise InputError(f"{self.where(index)}: half of a surrogate pair is no text ({error})") from None
        except InputError as error:
            raise InputError(f"{self.where(index)}: {error}") from None


def leaves_folder(path: str) -> bool:
    """Whether a path of a record leads out of the JSONL's folder."""
    return os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == ".."


def checked_paths(paths: object) -> list[str]:
    """Check the paths of a record: relative to the JSONL's folder, which they may not leave. Raises InputError."""
    if not (isinstance(paths, list) and all(isinstance(path, str) or path is None for path in paths)):
        raise InputError("`filepaths` is not a list of paths")
    kept = [path for path in paths if not is_blank(path)]
    if not kept:
        raise InputError("`filepaths` is not a list of paths: there is none in it")
    for path in kept:
        if "\0" in path:
            raise InputError(f"the path {path!r} has a NUL in it")
        if leaves_folder(path):
            raise InputError(f"the path {path!r} leaves the folder of the JSONL file")
    return kept


def metadata_lines(record: dict) -> list[str]:
    """List the lines of the metadata fields, each once, in their order. A field that does not apply gives none."""
    values: list[str] = []
    for field in METADATA:
        values += [item for item in _listed(record.get(field)) if isinstance(item, str)]
    lines = (line.strip() for value in values if not is_blank(value) for line in value.split("\n"))
    return list(dict.fromkeys(filter(None, lines)))


def summaries(value: object) -> list[str]:
    """List the texts of `summary_en` (a string or a list of strings) or `summary_nen` (a dict or a list of dicts)."""
    texts = [item.get("summary") if isinstance(item, dict) else item for item in _listed(value)]
    return [text for text in texts if isinstance(text, str) and not is_blank(text)]


def choose_text(record: dict, rng: random.Random) -> list[str]:
    """Choose the lines of text of a piece in training (paper, section 3.3, "text dropout").

    With probability METADATA_SHARE some of the metadata lines, LINE_SHARE of them, in random order; else a summary,
    English or not, equally likely.
    """
    metadata = metadata_lines(record)
    by_language = [
        texts for texts in (summaries(record.get("summary_en")), summaries(record.get("summary_nen"))) if texts
    ]
    if metadata and (rng.random() < config.METADATA_SHARE or not by_language):
        lines = [line for line in metadata if rng.random() < config.LINE_SHARE] or metadata
        rng.shuffle(lines)
        return lines
    if by_language:
        return [rng.choice(rng.choice(by_language))]
    return []


def fixed_text(record: dict) -> list[str]:
    """Choose the text of a piece in evaluation: the English summary, or else another one, or else all metadata."""
    found = summaries(record.get("summary_en")) or summaries(record.get("summary_nen"))
    return found[:1] or metadata_lines(record)
