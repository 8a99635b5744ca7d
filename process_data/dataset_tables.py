"""The tables of public data sets, read a row at a time and by the names of their columns: CSV, JSON, parquet."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dataset_files import LeftOut, Source
from shared import InputError, records

LONGEST = 16 * 2**20  # characters of a cell of a CSV file, or of an object in a JSON array
CHUNK = 2**20  # characters of a JSON array that are read at a time
_BETWEEN_VALUES = re.compile(r"[\s,:]*")


@dataclass(frozen=True)
class Row:
    """A row of a table. Its methods return a column's value, or raise LeftOut if it is not of that kind."""

    where: str  # file and line
    values: dict
    problem: str = ""  # why the row as a whole cannot be read

    def get(self, column: str) -> object:
        if self.problem:
            raise LeftOut("the row cannot be read", self.problem)
        if column not in self.values:
            raise LeftOut(f"the row has no `{column}`")
        value = self.values[column]
        return None if value != value else value  # NaN, as pandas writes what is missing

    def text(self, column: str) -> str:
        """Return a text or a number as text, without space around; "" for null."""
        value = self.get(column)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _misfit(column, "text", value)
        return str(value).strip()

    def texts(self, column: str) -> list[str]:
        """Return a list of texts without blanks; a text counts as a list of one, null as an empty one."""
        value = self.get(column)
        listed = value if isinstance(value, list) else [value]
        if not all(item is None or isinstance(item, str) for item in listed):
            raise _misfit(column, "a list of texts", value)
        return [item.strip() for item in listed if isinstance(item, str) and item.strip()]

    def flag(self, column: str) -> bool:
        value = self.get(column)
        known = {"true": True, "false": False}.get(str(value).strip().lower())
        if known is None:
            raise _misfit(column, "True or False", value)
        return known

    def number(self, column: str) -> float | None:
        """Return a finite number, which may be written as text; None for null or blank text."""
        value = self.get(column)
        if value is None or value == "":
            return None
        try:
            number = float("nan" if isinstance(value, bool) else value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise _misfit(column, "a number", value) from None
        if number != number or number in (float("inf"), -float("inf")):
            raise _misfit(column, "a number", value)
        return number


def _misfit(column: str, wanted: str, value: object) -> LeftOut:
    return LeftOut(f"`{column}` is not {wanted}", repr(value)[:80])


def csv_rows(source: Source, member: str, required: Iterable[str], null: str = "") -> Iterator[Row]:
    """Read a CSV file with a header, by the columns' names; cells equal to `null` are None.

    A row that cannot be read is still yielded, with its problem. Raises InputError if a required column is missing.
    """
    csv.field_size_limit(LONGEST)
    with io.TextIOWrapper(source.stream(member), "utf-8-sig", "surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise InputError(f"{member}, line 1: not CSV ({error})") from None
        _require(header, required, f"{member}, line 1")
        while True:
            problem, cells, first = "", [], reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = str(error)
            if not cells and not problem:  # a blank line
                continue
            if not problem and len(cells) != len(header):
                problem = f"{len(cells)} cells, but {len(header)} columns"
            if any("\udc80" <= c <= "\udcff" for cell in cells for c in cell if not cell.isascii()):
                problem = problem or "not UTF-8"
            if problem and (lines := reader.line_num + 1 - first) > 1:  # a quotation mark is missing
                problem += f", in {lines} lines"
            values = {name: None if cell == null else cell for name, cell in zip(header, cells, strict=False)}
            yield Row(f"{member}, line {reader.line_num}", values, problem)


def _require(found: Iterable[str], required: Iterable[str], where: str) -> None:
    """Raise InputError if a column is missing: then the file is of another release, and no row can be used."""
    found = list(found)
    if missing := [name for name in required if name not in found]:
        has = ", ".join(found) or "nothing"
        raise InputError(f"{where}: no column {', '.join(missing)}; it has: {has}. Is it another release?")


def json_rows(source: Source, member: str, required: Iterable[str]) -> Iterator[Row]:
    """Read the objects of a file: JSON Lines, or one JSON array, a piece at a time.

    A line that cannot be read is still yielded, with its problem. Raises InputError if the first object lacks a
    required key, or if an array is damaged.
    """
    with source.stream(member) as file:
        start = file.read(CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()
    objects = _array(source, member) if start.startswith(b"[") else _lines(source, member)
    checked = False
    for row in objects:
        if not checked and not row.problem:
            _require(row.values, required, row.where)
            checked = True
        yield row


def _lines(source: Source, member: str) -> Iterator[Row]:
    with source.stream(member) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{member}, line {number}"
                try:
                    yield Row(where, records.parse(line))
                except InputError as error:
                    yield Row(where, {}, str(error))


def _array(source: Source, member: str) -> Iterator[Row]:
    for number, value in enumerate(_values(source, member, "]"), start=1):
        yield _object(f"{member}, object {number}", value)


def json_members(source: Source, member: str) -> Iterator[tuple[str, Row]]:
    """Read a file that is one JSON object of objects, as (key, object), a piece at a time. Raises InputError."""
    values = _values(source, member, "}")
    for key in values:
        yield str(key), _object(f"{member}, {key!r}", next(values, None))


def _object(where: str, value: object) -> Row:
    return Row(where, value) if isinstance(value, dict) else Row(where, {}, f"a {type(value).__name__}, no object")


def _values(source: Source, member: str, closing: str) -> Iterator[object]:
    """Parse the values between a JSON file's brackets, one after another; of an object, also its keys."""
    decoder, number, start = json.JSONDecoder(), 0, 0
    with io.TextIOWrapper(source.stream(member), "utf-8-sig", "replace") as file:
        text = file.read(CHUNK).lstrip()[1:]
        while True:
            start = _BETWEEN_VALUES.match(text, start).end()  # type: ignore[union-attr]
            if text.startswith(closing, start):
                return
            try:
                value, end = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                more = file.read(CHUNK) if len(text) - start < LONGEST else ""
                if not more:
                    number = number + 1 if closing == "]" else number // 2 + 1
                    raise InputError(f"{member}, object {number}: not JSON ({error}); is it complete?") from None
                text, start = text[start:] + more, 0
                continue
            start, number = end, number + 1
            yield value


def parquet_rows(source: Source, member: str, required: Iterable[str], batch_size: int = 64) -> Iterator[Row]:
    """Read the required columns of a parquet file, some rows at a time. Raises InputError."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{member}: parquet is read by pyarrow; pip install pyarrow") from None
    columns = list(required)
    try:
        by_parts = {"pre_buffer": False, "buffer_size": CHUNK}  # else a row group, a gigabyte perhaps, is read whole
        with source.stream(member) as file, parquet.ParquetFile(file, **by_parts) as table:
            _require(table.schema_arrow.names, columns, member)
            number = 0
            for batch in table.iter_batches(batch_size, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{member}, row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:  # OSError: damaged pages
        raise InputError(f"{member}: not a parquet file that can be read ({error})") from None
