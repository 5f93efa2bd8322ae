"""Lines of a file with named columns, such that whatever is wrong in one is told with its file, line and column."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from restow.errors import TraceError


@dataclass(frozen=True, slots=True)
class Line:
    path: Path
    number: int
    values: dict[str, str]

    def error(self, column: str, why: str) -> TraceError:
        where = f", column {column}" if column else ""
        return TraceError(f"{self.path}, line {self.number}{where}: {why}")

    def text(self, column: str) -> str:
        return self.values[column].strip()

    def decimal(self, column: str, *, scale: float = 1.0) -> float:
        """A finite number of 0 or more, times `scale`."""
        written = self.text(column)
        try:
            value = float(written)
        except ValueError:
            raise self.error(column, f"{written!r} is no number") from None
        if not math.isfinite(value) or value < 0:
            raise self.error(column, f"{written} must be a number of 0 or more")
        return value * scale

    def whole(self, column: str) -> int:
        value = self.decimal(column)
        if value != int(value):
            raise self.error(column, f"{self.text(column)} must be a whole number")
        return int(value)

    def moment(self, column: str) -> float:
        """Seconds since 1970 of `2017-10-09 07:01:55` or `2017-10-09T07:01:55`, taken as UTC."""
        written = self.text(column)
        try:
            return datetime.fromisoformat(written).replace(tzinfo=UTC).timestamp()
        except ValueError:
            raise self.error(column, f"{written!r} is no date and time such as 2026-11-30T12:00:00") from None


def columns_of(path: Path, delimiter: str = ",") -> tuple[str, ...]:
    """Those of its first line; empty where there is none. Raises TraceError."""
    for values in _split(path, delimiter):
        return tuple(value.strip() for value in values[1])
    return ()


def lines(path: Path, columns: Sequence[str] | None = None, delimiter: str = ",") -> Iterator[Line]:
    """Every line; `columns`: their names, where the first line does not have them. Raises TraceError."""
    names = tuple(columns) if columns else None
    for number, values in _split(path, delimiter):
        if names is None:
            names = tuple(value.strip() for value in values)
            continue
        if len(values) != len(names):
            raise TraceError(f"{path}, line {number}: it has {len(values)} columns, the others have {len(names)}")
        yield Line(path, number, dict(zip(names, values, strict=True)))


def _split(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_checked(path, file), delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter != "," else 0)
            try:
                for values in reader:
                    if any(value.strip() for value in values):
                        yield reader.line_num, values
            except csv.Error as error:
                raise TraceError(f"{path}, line {reader.line_num}: {error}") from None
    except OSError as error:
        raise TraceError(f"trace {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"trace {path} is not text; give a file of rows and columns") from None


def _checked(path: Path, file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise TraceError(f"{path}, line {number}: it holds a byte 0, so it is not text")
        yield line
