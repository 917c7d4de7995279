"""Pictures and tables for the tests of the multiple-choice benchmarks, written as they are published."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image


def drawn(colour: str, kind: str = "PNG") -> bytes:
    """A small picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, kind)
    return buffer.getvalue()


def in_base64(colour: str) -> str:
    """A picture as MMBench's table holds it."""
    return base64.b64encode(drawn(colour, "JPEG")).decode()


def struct(colour: str) -> dict[str, Any]:
    """A picture as the Parquet files of Hugging Face hold it."""
    return {"bytes": drawn(colour), "path": None}


def write_tsv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """A table with tabs and a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """A table with commas and no header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A Parquet file with the columns of the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
