"""Pictures out of tables: rows of Parquet files, and files for the pictures they hold.

Knows no benchmark and opens no picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eval.answer_files import only_scoring
from eval.errors import EvalError
from eval.files import Row
from eval.results import write_bytes

_SUFFIXES = ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF8", ".gif"), (b"RIFF", ".webp"))
_ROWS = 64  # read at a time: a row may hold pictures of many megabytes


def unpack(folder: Path, name: str, content: bytes) -> Path:
    """A picture as a file of the folder, written where it is not there in that size, and not for scoring."""
    suffix = next((ending for start, ending in _SUFFIXES if content.startswith(start)), ".img")
    path = folder / f"{name}{suffix}"
    if not only_scoring() and (not path.is_file() or path.stat().st_size != len(content)):
        write_bytes(path, content)
    return path


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, a few at a time."""
    try:
        import pyarrow  # noqa: PLC0415  # heavy, and only these files need it
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise EvalError(f"{path}: reading it needs the package pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values)
    except (pyarrow.ArrowException, OSError):
        raise EvalError(f"{path}: row {number + 1} cannot be read as Parquet; fetch the file again") from None


def shards(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in order."""
    found = sorted(folder.glob(f"{split}-*.parquet"))
    if not found:
        raise EvalError(
            f"{folder}: no {split}-*.parquet in it; `python -m eval prepare` says where they are published"
        )
    return found


def picture(row: Row, name: str) -> bytes | None:
    """The bytes of a picture column; None where the row has no picture there."""
    value = row.any(name)
    if value is None:
        return None
    content = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(content, bytes) or not content:
        raise EvalError(f"{row.where}: {name} holds no picture; fetch the file again")
    return content
