"""The records that gpt4_summarize.py works on: read from IN, compared with and written to OUT."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import chat
import jobs
import merge_jsonl
import prompts
from shared import files, records


@dataclass
class Line(jobs.Job):
    """A line of a .jsonl file as a job."""

    text: bytes


class Lines(jobs.Jobs):
    """The records of a .jsonl file as jobs: line 12 of set.jsonl goes to OUT/set/0000012.json."""

    def __init__(self, source: Path, output: Path):
        """Raise ValueError if there is no record, or `output` is a file; OSError if the file cannot be read."""
        self.source, self.output = source, output
        self.is_folder, self.other_files = True, 0
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output} is a file; OUT must be a folder")
        self.length = sum(1 for _ in self)
        if not self.length:
            raise ValueError(f"{source}: there is no record in it")

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Line]:
        with open(self.source, "rb") as lines:
            for number, text in enumerate(lines, start=1):
                if text.strip():
                    output = self.output / self.source.stem / f"{number:07d}.json"
                    yield Line(f"{self.source.name}:{number}", self.source, output, None, text)


def read(job: jobs.Job) -> dict:
    """Read the record of a job. Raises Unfit."""
    return records.parse_metadata(job.text) if isinstance(job, Line) else merge_jsonl.read(job.source)


def read_output(job: jobs.Job, record: dict) -> dict | None:
    """Read the output of an earlier start for a record, if the model would be sent the same now; else None."""
    try:
        output = records.parse_metadata(job.output.read_bytes())
    except (OSError, records.Unfit):
        return None
    return output if prompts.known(output) == prompts.known(record) else None


def finished(job: jobs.Job) -> dict:
    """Read a record with the summaries that an earlier start wrote. Raises Unfit."""
    record = read(job)
    output = read_output(job, record)
    if output is None:
        raise records.Unfit("not asked for yet, or its metadata have changed since", str(job.output))
    return with_summaries(record, output["summary_en"], output["summary_nen"])


def with_summaries(record: dict, english: object, other: object) -> dict:
    """Fill in missing summaries."""
    return record | {
        "summary_en": english if records.is_blank(record["summary_en"]) else record["summary_en"],
        "summary_nen": other if records.is_blank(record["summary_nen"]) else record["summary_nen"],
    }


def write(job: jobs.Job, record: dict) -> None:
    """Write an output. Raises chat.Stop if that fails: more answers would be paid for in vain."""
    text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    try:
        with files.atomic_write(job.output) as file:
            file.write(text.encode("utf-8", "backslashreplace"))  # JSON's own way to write half a surrogate pair
    except OSError as error:
        raise chat.Stop(f"{job.output}: {error.strerror}") from None


def has_summaries(record: dict) -> bool:
    return not any(records.is_blank(record[field]) for field in ("summary_en", "summary_nen"))
