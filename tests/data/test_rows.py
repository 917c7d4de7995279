from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import rows as rows_module
from data.errors import DataError
from data.rows import index_rows

TEXTS = st.text(st.sampled_from('ab"\\{}[],: \n\té漢😀'), max_size=12)
OBJECTS = st.lists(
    st.dictionaries(TEXTS, st.one_of(TEXTS, st.lists(TEXTS, max_size=2), st.dictionaries(TEXTS, TEXTS))),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("layout", ["lines", "array", "pretty", "ascii"])
@given(content=OBJECTS, chunk=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_rows_are_those_of_the_json_module_at_any_chunk_size(
    tmp_path_factory: pytest.TempPathFactory, layout: str, content: list[Any], chunk: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.json"
    texts = {
        "lines": "\r\n \n".join(json.dumps(row, ensure_ascii=False) for row in content),
        "array": json.dumps(content, ensure_ascii=False),
        "pretty": "\ufeff \n" + json.dumps(content, ensure_ascii=False, indent=2) + "\n",
        "ascii": json.dumps(content),
    }
    path.write_bytes(texts[layout].encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "CHUNK", chunk)
        rows = index_rows(path)
    assert list(rows) == content
    assert rows[-1] == content[-1] and rows[:1] == content[:1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows; name a JSONL file or a JSON array"),
        (b" [ ] ", "holds no rows"),
        (b"id,text\n", "begins with neither '\\[' nor '{'; name a JSONL file"),
        (b'{\n "a": 1\n}', "is one JSON object over several lines, not rows"),
        (b'[{"a": 1}, {"a"', "ends in the middle of its array; fetch or write it again"),
        (b'[{"a": "x', "ends in the middle of its array"),
        (b'[{"a": 1} {"a": 2}]', "2 rows with 0 commas between them; write it again"),
        (b'[{"a": 1}, 5]', "byte 11 belongs to no row; the array may hold objects only"),
        (b'["a"]', "byte 1 belongs to no row"),
        (b'[{"a": 1}] x', "byte 11 belongs to no row"),
        (b'[{"a": 1}]]', "byte 10 belongs to no row"),
    ],
)
def test_what_is_no_file_of_rows_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        index_rows(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*none.json; correct the path"):
        index_rows(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read .*; check its permissions"):
        index_rows(tmp_path)


@pytest.mark.parametrize("broken", [b'{"a": }', b'{"a": "\xff"}', b"[" * 100_000])
def test_a_broken_row_is_named_and_the_others_are_read(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + broken + b'\n{"a": 3}\n')
    rows = index_rows(path)
    assert (len(rows), rows[0], rows[2]) == (3, {"a": 1}, {"a": 3})
    with pytest.raises(DataError, match=r"rows.jsonl, row 2 is not JSON in UTF-8 .*; correct it"):
        rows[1]


@pytest.mark.parametrize("layout", ["lines", "array"])
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "CHUNK", 1 << 16)
    path = tmp_path / "rows.json"
    row = json.dumps({"text": "x" * 20_000})
    opening, between, closing = ("[", ",\n", "]") if layout == "array" else ("", "\n", "\n")
    with path.open("w") as file:
        file.write(opening + between.join([row] * 1000) + closing)
    tracemalloc.start()
    rows = index_rows(path)
    assert len(rows) == 1000 and sum(len(each["text"]) for each in rows) == 20_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
