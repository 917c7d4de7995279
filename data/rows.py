"""The rows of a JSONL file or of one large JSON array, read one at a time by where they stand.

The file is scanned once, in chunks, for the place of every row; after that a row costs one short read, so
a file may be larger than memory. Both layouts can be scanned as bytes: in UTF-8 no byte of a longer
character is an ASCII one. Knows nothing of what a row means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.errors import DataError

CHUNK = 1 << 19
_BLANK = np.zeros(256, dtype=bool)
_BLANK[[9, 10, 13, 32]] = True
_DEPTH = np.zeros(256, dtype=np.int8)
_DEPTH[[ord("["), ord("{")]] = 1
_DEPTH[[ord("]"), ord("}")]] = -1
_BOM = b"\xef\xbb\xbf"
_BEGINNING = 1 << 16

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


class Rows(Sequence[Any]):
    """The rows of a file, parsed on access; `places` int64[R, 2] are their first bytes and lengths."""

    def __init__(self, path: Path, places: Places) -> None:
        self.path = path
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        start, length = (int(value) for value in self.places[index])
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
        try:
            return json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            row = f"{self.path}, row {index % len(self) + 1}"
            raise DataError(f"{row} is not JSON in UTF-8 ({error}); correct it") from error


def index_rows(path: Path) -> Rows:
    """The rows of a file; a DataError where it holds none or is not such a file."""
    try:
        begin, is_array = _layout(path)
        places = _array_places(path, begin) if is_array else _line_places(path, begin)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; correct the path") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if not len(places):
        raise DataError(f"{path} holds no rows; name a JSONL file or a JSON array of rows")
    return Rows(path, places)


def _layout(path: Path) -> tuple[int, bool]:
    """Where the content begins, and whether it is an array."""
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    content = beginning.removeprefix(_BOM).lstrip()
    if content[:1] not in (b"[", b"{", b""):
        raise DataError(f"{path} begins with neither '[' nor '{{'; name a JSONL file or a JSON array of rows")
    if content.partition(b"\n")[0].strip() == b"{":
        raise DataError(
            f"{path} is one JSON object over several lines, not rows; write a list, or one row a line"
        )
    return len(beginning) - len(content), content[:1] == b"["


def _chunks(path: Path, begin: int) -> Iterator[tuple[int, Bytes]]:
    """The bytes from `begin` in order with their offset, under a bar once it has taken two seconds."""
    total = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(total=total, desc=path.name, unit="B", unit_scale=True, delay=2, leave=False) as bar,
    ):
        file.seek(begin)
        while content := file.read(CHUNK):
            yield begin, np.frombuffer(content, dtype=np.uint8)
            begin += len(content)
            bar.update(len(content))


def _line_places(path: Path, begin: int) -> Places:
    """First byte and length of every line that is not blank."""
    ends, written = [], []  # of every line: its end, and the non-blank bytes up to there
    seen, end = 0, begin
    for start, content in _chunks(path, begin):
        counts = seen + np.cumsum(~_BLANK[content], dtype=np.int64)
        breaks = np.flatnonzero(content == ord("\n"))
        ends.append(start + breaks)
        written.append(counts[breaks])
        seen, end = int(counts[-1]), start + len(content)
    stops = np.concatenate([*ends, [end]]).astype(np.int64)
    starts = np.concatenate([[begin], stops[:-1] + 1]).astype(np.int64)
    filled = np.diff(np.concatenate([[0], *written, [seen]])) > 0
    return np.stack([starts, stops - starts], axis=1)[filled]


def _array_places(path: Path, begin: int) -> Places:
    """First byte and length of every object (or list) that is an element of the array."""
    scan = _Scan(path)
    for start, content in _chunks(path, begin):
        scan.read(start, content)
    return scan.places()


class _Scan:
    """What must be carried from chunk to chunk: depth, whether a string is open, and backslashes before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._depth = 0
        self._in_string = 0
        self._escaped = 0  # the chunk's first byte stands behind an odd number of backslashes
        self._commas = 0
        self._starts: list[NDArray[np.int64]] = []
        self._stops: list[NDArray[np.int64]] = []

    def read(self, start: int, content: Bytes) -> None:
        """Adds the bytes that begin at offset `start`."""
        quotes = self._quotes(content)
        # 1 from an opening quote up to, not with, its closing one.
        inside = (np.cumsum(quotes, dtype=np.int64) + self._in_string) & 1
        self._in_string = int(inside[-1])
        change = _DEPTH[content] * (1 - inside)
        depth = self._depth + np.cumsum(change, dtype=np.int64)
        self._depth = int(depth[-1])
        self._starts.append(start + np.flatnonzero((change == 1) & (depth == 2)))
        self._stops.append(start + np.flatnonzero((change == -1) & (depth == 1)) + 1)
        commas = (content == ord(",")) & (depth == 1) & (inside == 0)
        self._commas += int(commas.sum())
        between = (depth <= 1) & (change == 0) & ~_BLANK[content] & ~commas
        strange = np.flatnonzero(between | (depth < 0))
        if strange.size:
            offset = start + int(strange[0])
            raise DataError(
                f"{self._path}: byte {offset} belongs to no row; the array may hold objects only, with "
                "commas between them"
            )

    def places(self) -> Places:
        """Every row, once all bytes have been read."""
        starts, stops = np.concatenate(self._starts), np.concatenate(self._stops)
        if self._depth or self._in_string:
            raise DataError(f"{self._path} ends in the middle of its array; fetch or write it again")
        if self._commas != max(0, len(starts) - 1):
            raise DataError(
                f"{self._path}: {len(starts)} rows with {self._commas} commas between them; write it again"
            )
        return np.stack([starts, stops - starts], axis=1).astype(np.int64)

    def _quotes(self, content: Bytes) -> NDArray[np.bool_]:
        """The quotes that open or close a string: those behind an even number of backslashes."""
        quotes: NDArray[np.bool_] = content == ord('"')
        slashes = content == ord("\\")
        escaped = self._escaped
        self._escaped = 0
        if not slashes.any():
            if escaped:
                quotes[0] = False
            return quotes
        order = np.arange(len(content))
        # The last byte before each place that is no backslash; a carried one counts as standing at -1.
        last = np.maximum.accumulate(np.where(slashes, -1 - escaped, order))
        odd = (order - last) % 2 == 1  # the run that ends here, this byte included, has an odd length
        behind = np.concatenate([[bool(escaped)], (odd & slashes)[:-1]])
        self._escaped = int((odd & slashes)[-1])
        quotes[behind] = False
        return quotes
