"""Tables of rows on disk: JSONL and Parquet in, JSONL out; nothing malformed is skipped silently.

Knows files, lines and reasons. Knows no step: where a table belongs is the caller's affair.

    table = read_table(path, Preference, forbidden=control_tokens(tokenizer))
    table.rows, table.rejects
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from posttrain.errors import BadInput

RowT = TypeVar("RowT", bound=BaseModel)
LARGEST_ROW = 16 << 20
"""Bytes of a line; a longer one is no dialog."""
_EXCERPT = 300
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Reject:
    """A row that could not be read."""

    file: str
    line: int
    """1 for the first line of a .jsonl file, and for the first row of a .parquet file."""
    reason: str
    excerpt: str = ""


@dataclass(frozen=True)
class Table(Generic[RowT]):
    """What a file held."""

    rows: list[RowT]
    rejects: list[Reject]

    def check_share(self, allowed: float, setting: str = "resources.reject_share") -> None:
        """Stop when too much of the file is malformed.

        Args:
            allowed: share of the rows.
            setting: what a user changes to allow more.

        Raises:
            BadInput: naming the share and the first rejects.
        """
        check_share(self.rejects, len(self.rows) + len(self.rejects), allowed, setting)


def check_share(rejects: Sequence[Reject], total: int, allowed: float, setting: str) -> None:
    """Stop when too many of `total` rows are rejects; see `Table.check_share`."""
    if len(rejects) > allowed * total:
        first = rejects[0]
        raise BadInput(
            f"{first.file}: {len(rejects)} of {total} rows are malformed, more than the "
            f"allowed {allowed:.0%} ({setting}); the first: line {first.line}: {first.reason}"
        )


def read_table(path: Path, kind: type[RowT], forbidden: Iterable[str] = ()) -> Table[RowT]:
    """Read every row of a file as `kind`; whatever does not fit becomes a reject.

    Args:
        path: a .jsonl or .parquet file.
        kind: the row's class.
        forbidden: texts that no message may contain, such as `<|eot_id|>`.

    Raises:
        BadInput: the file is missing, or of another format.
    """
    rows: list[RowT] = []
    rejects: list[Reject] = []
    seen: dict[str, int] = {}
    banned = tuple(forbidden)
    for number, raw in raw_rows(path):
        row = parse_row(raw, kind, banned)
        if isinstance(row, str):
            rejects.append(Reject(path.name, number, row, excerpt(raw)))
            continue
        row_id = str(row.model_dump(include={"id"}).get("id", ""))
        if row_id and row_id in seen:
            reason = f"id {row_id} was already used in line {seen[row_id]}"
            rejects.append(Reject(path.name, number, reason, excerpt(raw)))
            continue
        seen[row_id] = number
        rows.append(row)
    return Table(rows, rejects)


def load_rows(path: Path, kind: type[RowT]) -> list[RowT]:
    """Rows of a table we published ourselves: a malformed one is an error.

    Raises:
        BadInput: the first malformed row.
    """
    table = read_table(path, kind)
    table.check_share(0.0)
    return table.rows


def stream_rows(path: Path, kind: type[RowT]) -> Iterator[RowT]:
    """`load_rows`, one row in memory at a time.

    Raises:
        BadInput: a malformed row.
    """
    for number, raw in raw_rows(path):
        row = parse_row(raw, kind)
        if isinstance(row, str):
            raise BadInput(f"{path}: line {number}: {row}")
        yield row


def write_rows(path: Path, rows: Iterable[BaseModel | Mapping[str, Any]]) -> int:
    """Write JSONL so that the file is whole or absent; the number of rows."""
    count = 0
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            write_row(file, row)
            count += 1
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return count


def write_json(path: Path, value: object) -> None:
    """Write one JSON document so that the file is whole or absent."""
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def complaint(error: ValueError) -> str:
    """What a row's check found wrong, in one line: the first complaint with its place."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    place = ".".join(str(p) for p in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        BadInput: missing, damaged or no object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: expected a JSON object")
    return value


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table that we have published, as plain values, unchecked."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def excerpt(raw: object) -> str:
    """The beginning of a row as it stands in its file."""
    # A character has four bytes at most.
    text = (
        raw[: 4 * _EXCERPT].decode(errors="replace").strip() if isinstance(raw, bytes) else str(raw)
    )
    return text[:_EXCERPT]


def write_row(file: IO[str], row: BaseModel | Mapping[str, Any]) -> None:
    """Add one line of JSON to an open file."""
    value = row.model_dump(mode="json", exclude_none=True) if isinstance(row, BaseModel) else row
    file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def raw_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Line or row number, and what stands there; blank lines are no rows, but they count.

    Raises:
        BadInput: the file is missing, or of another format.
    """
    if path.suffix == ".parquet" and path.is_file():
        yield from enumerate(_parquet_rows(path), 1)
        return
    for _, number, line in json_file_lines(path):
        yield number, line


def json_file_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Byte offset, line number and content of each line that is not blank.

    Of a line that is longer than any row may be, the beginning: `parse_row` says what is wrong.

    Raises:
        BadInput: the file is missing, or of another format.
    """
    if path.suffix not in (".jsonl", ".json", ".parquet"):
        raise BadInput(f"{path}: expected a .jsonl or .parquet file")
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    offset = number = 0
    with path.open("rb") as file:
        while line := file.readline(LARGEST_ROW + 1):
            number += 1
            size = len(line)
            rest = line
            while not rest.endswith(b"\n") and (rest := file.readline(LARGEST_ROW)):
                size += len(rest)
            if line.strip():
                yield offset, number, line
            offset += size


def _parquet_rows(path: Path) -> Iterator[object]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                yield _without_nulls(row)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path}: no readable Parquet file ({error})") from error


def _without_nulls(value: Any) -> Any:
    """Parquet gives every row of a column the same keys; those that a row never had are null."""
    if isinstance(value, dict):
        return {k: _without_nulls(child) for k, child in value.items() if child is not None}
    return [_without_nulls(child) for child in value] if isinstance(value, list) else value


def parse_row(raw: object, kind: type[RowT], banned: tuple[str, ...] = ()) -> RowT | str:
    """The row that stands in a line's bytes or a Parquet row, or why there is none."""
    if isinstance(raw, bytes) and len(raw) > LARGEST_ROW:
        return f"a row of more than {LARGEST_ROW >> 20} MiB"
    try:
        data = _decoded(raw) if isinstance(raw, bytes) else raw
        return _row_of(data, kind, banned)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"
    except UnicodeEncodeError:
        return "half of a surrogate pair, which UTF-8 cannot hold"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"no valid JSON: {error}"


def _decoded(raw: bytes) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decoded_slowly(raw)


def _decoded_slowly(raw: bytes) -> object:
    """The same for a line with a byte order mark, and else an error that says what is wrong."""
    text = raw.decode("utf-8-sig")
    data = json.loads(text, parse_constant=_refuse)
    if _SURROGATE.search(text):
        json.dumps(data, ensure_ascii=False).encode()
    return data


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def _row_of(data: object, kind: type[RowT], banned: tuple[str, ...]) -> RowT | str:
    if not isinstance(data, dict):
        return f"expected a JSON object, found {type(data).__name__}"
    try:
        row = kind.model_validate(data)
    except ValidationError as error:
        return complaint(error)
    # What was read, not what was written: a text may have become a message.
    for text in _contents(row.model_dump(mode="json")) if banned else ():
        for token in banned:
            if token in text:
                return f"control token {token} inside a message"
    return row


def _contents(data: object) -> Iterator[str]:
    """Every message text in a row."""
    if isinstance(data, dict):
        content = data.get("content")
        if "role" in data and isinstance(content, str):
            yield content
        for value in data.values():
            yield from _contents(value)
    elif isinstance(data, list):
        for value in data:
            yield from _contents(value)
