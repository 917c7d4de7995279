"""No golden case is left out: every group is read by a test, every file of expectations has a known shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.cases import GOLDEN, cases, expectations, groups

SOURCES = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
pytestmark = pytest.mark.skipif(not groups(), reason=f"no golden cases below {GOLDEN} (MMA_GOLDEN)")


@pytest.mark.parametrize("group", groups())
def test_every_group_is_read_by_a_test(group: str) -> None:
    assert f'("{group}"' in SOURCES or f', "{group}"' in SOURCES


@pytest.mark.parametrize("group", groups())
def test_every_case_has_its_files(group: str) -> None:
    for case in cases(group):
        assert all(list(case.folder.glob(name)) for name in case.files) and case.files, case


def test_every_file_of_expectations_has_a_known_shape() -> None:
    for path, content in expectations().items():
        known = "sets" in content or all(
            isinstance(entry, dict) and {"files", "official_result"} <= entry.keys()
            for entry in content.values()
        )
        assert known and content, path
