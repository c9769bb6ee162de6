"""Blobs into and out of statements: rows are fetched in portions and written as they come, values are read likewise.

Rows in a blob are lines of JSON, or CSV with the columns in its first line. A blob of values is the same, or an array
in JSON; its mappings may have more than the statement takes.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final, Literal

import msgspec

from knhk.actions.blob_access import AreaAccess, opened
from knhk.actions.blob_streams import PIECE_BYTES, Keep
from knhk.domain import payload
from knhk.domain.blob import CSV, JSON, JSON_LINES, BlobReference
from knhk.domain.units import MB, format_size
from knhk.ports.blobs import Blobs

Format = Literal["jsonl", "csv"]
Row = dict[str, Any]
MOST_AT_ONCE: Final = 1000
"""Rows that are fetched, or values that are bound, in one portion; fewer if they weigh more than a piece."""
_CSV: Final = ("text/csv", "application/csv")
_LINES: Final = (JSON_LINES, "application/jsonl", "application/x-jsonlines")
_TEXT: Final = (JSON, "application/xml", "application/yaml", *_CSV, *_LINES)

csv.field_size_limit(max(csv.field_size_limit(), 64 * MB))  # one for the whole process


class TooManyRows(Exception):
    """A statement gives more rows than an output may have."""


class Rows:
    """Takes what the statements of one step give: held while it may stand in an output, else written to blobs."""

    def __init__(self, blobs: Blobs, keep: Keep, form: Format, max_rows: int) -> None:
        self._blobs, self._form, self._max_rows = blobs, form, max_rows
        self._keep: Keep = keep if blobs.max_bytes else "never"
        self._room = blobs.data_bytes

    @property
    def streams(self) -> bool:
        """Whether there may be more rows than memory has room for."""
        return self._keep != "never"

    def take(self, columns: Sequence[str], portions: Iterator[list[Row]]) -> dict[str, Any]:
        """The result of a statement. Raises TooManyRows, and what the blob area raises."""
        held: list[Row] = []
        if self._keep == "always":
            return self._written(columns, portions)
        for portion in portions:
            held += portion
            if self.streams:
                self._room -= len(payload.encode(portion))
            if len(held) > self._max_rows or self._room < 0:
                if not self.streams:
                    raise TooManyRows
                self._room = max(0, self._room)
                return self._written(columns, chain([held], portions))
        return {"rows": held, "row_count": len(held)}

    def _written(self, columns: Sequence[str], portions: Iterator[list[Row]]) -> dict[str, Any]:
        count = 0

        def counted() -> Iterator[list[Row]]:
            nonlocal count
            for portion in portions:
                count += len(portion)
                yield portion

        pieces, media_type = (
            (_csv_of(columns, counted()), CSV) if self._form == "csv" else (_lines_of(counted()), JSON_LINES)
        )
        reference = AreaAccess(self._blobs).put(pieces, media_type)
        return {"rows": reference.to_dict(), "row_count": count, "columns": list(columns)}


def weight_of(rows: list[Row]) -> int:
    """About how many bytes these rows are."""
    return sum(len(value) if isinstance(value, str) else 8 for row in rows for value in row.values())


def bound(blobs: Blobs, value: Any, most_bytes: int) -> Any:
    """The value as it is bound: of a blob its contents, as text if its media type says so.

    Raises ValueError, and what reading a blob raises.
    """
    reference = BlobReference.of(value)
    if reference is None:
        return value
    if blobs.size(reference.digest) > most_bytes:
        raise ValueError(f"a blob of more than {format_size(most_bytes)} is no value (`actions.sql.max_value`)")
    raw = b"".join(blobs.pieces(reference.digest))
    kind = _kind(reference)
    if not kind.startswith("text/") and kind not in _TEXT and not kind.endswith(("+json", "+xml")):
        return raw
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"a blob that is {kind} is not UTF-8 at byte {error.start}") from error


def values_in(blobs: Blobs, reference: BlobReference, names: set[str], most_bytes: int) -> Iterator[list[Row]]:
    """The values in a blob, in portions. Raises ValueError, and what reading a blob raises."""
    number, portion, weight = 0, list[Row](), 0
    try:
        for number, row in enumerate(_rows_in(blobs, reference, most_bytes), 1):  # noqa: B007  # for what is raised
            if not isinstance(row, dict) or not names <= row.keys():
                raise ValueError(f"it has no {', '.join(sorted(names - set(row)) or ['mapping'])}")
            portion.append({name: row[name] for name in names})
            weight += weight_of(portion[-1:])
            if len(portion) >= MOST_AT_ONCE or weight >= PIECE_BYTES:
                yield portion
                portion, weight = [], 0
    except UnicodeDecodeError as error:
        raise ValueError(f"the values behind row {number} are not UTF-8") from error
    except (csv.Error, msgspec.DecodeError) as error:
        raise ValueError(f"row {number + 1} of the values cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"row {number} of the values: {error}" if number else str(error)) from error
    if portion:
        yield portion


def _rows_in(blobs: Blobs, reference: BlobReference, most_bytes: int) -> Iterator[Any]:
    kind = _kind(reference)
    if kind == JSON:
        yield from msgspec.json.decode(bound(blobs, reference.to_dict(), most_bytes), type=list[Any])
        return
    if kind not in (*_CSV, *_LINES):
        raise ValueError(f"a blob of values is {_CSV[0]}, {JSON_LINES} or {JSON}, not {kind}")
    with io.TextIOWrapper(opened(AreaAccess(blobs), reference), "utf-8-sig", newline="") as text:
        if kind in _CSV:
            yield from csv.DictReader(text)
        else:
            yield from (msgspec.json.decode(line) for line in text if line.strip())


def _kind(reference: BlobReference) -> str:
    return reference.media_type.partition(";")[0].strip().lower()


def _lines_of(portions: Iterator[list[Row]]) -> Iterator[bytes]:
    encoder = msgspec.json.Encoder()
    for portion in portions:
        yield encoder.encode_lines(portion)


def _csv_of(columns: Sequence[str], portions: Iterator[list[Row]]) -> Iterator[bytes]:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    for portion in portions:
        writer.writerows([_csv_field(row[column]) for column in columns] for row in portion)
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()


def _csv_field(value: Any) -> Any:
    """As CSV has it: nothing for NULL, JSON for what is neither text nor a number."""
    return value if value is None or type(value) in (str, int, float) else msgspec.json.encode(value).decode()
