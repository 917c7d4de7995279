"""Every benchmark has what the commands, the report and the docs rely on."""

from __future__ import annotations

import pytest

from eval.benchmark import check_complete, find, names
from eval.errors import EvalError

NAMES = (
    "ai2d", "coco_captions", "gqa", "llava_bench", "llava_bench_wilder", "mathvista", "mmbench", "mme",
    "mmlu", "mmmu", "mmvet", "pope", "scienceqa", "textvqa", "vicuna80", "vqav2",
)  # fmt: skip


def test_all_are_there() -> None:
    assert names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_each_says_of_itself(name: str) -> None:
    benchmark = find(name)
    assert benchmark.name == name and benchmark.title and benchmark.rule and benchmark.version >= 1
    assert benchmark.splits and set(benchmark.sizes) <= set(benchmark.splits)
    for split in benchmark.splits:
        assert all(needed.path and needed.source for needed in benchmark.needs(split))
        assert all(not needed.path.startswith("/") for needed in benchmark.needs(split))
    assert benchmark.max_new_tokens >= 1
    assert all(each.source and each.system for each in benchmark.published)


def test_a_name_that_is_none() -> None:
    with pytest.raises(EvalError, match="there is no benchmark 'mmlu2'; choose one of ai2d, "):
        find("mmlu2")


def test_answers_must_be_complete() -> None:
    with pytest.raises(EvalError, match="pope: 1 answers belong to no question"):
        check_complete(find("pope"), [], {"1": "yes"})
