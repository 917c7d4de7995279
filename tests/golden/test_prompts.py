"""Prompts of the public ScienceQA code, and real ScienceQA rows, where they are at hand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.check import check
from data.pictures import slot_counter
from data.prompts import FORMATS, render
from data.sample import Sample
from data.scienceqa import Problem, load_split
from data.template import make_template
from models.tokenizer import load_tokenizer
from tests.golden.cases import GOLDEN, lines_with

SHARED = Path(__file__).parents[2].parent / "shared"
CASES = lines_with("prompts", "problem", "prompt_format", "use_caption")
LLAMA = GOLDEN / "tokenizer/llama.model"
SCIENCEQA = Path(os.environ.get("MMA_SCIENCEQA", SHARED / "scienceqa"))

every_case = pytest.mark.parametrize(
    "case",
    [pytest.param(line, id=name) for name, line in CASES]
    or [pytest.param(None, marks=pytest.mark.skip(reason=f"no golden prompts below {GOLDEN} (MMA_GOLDEN)"))],
)
needs_scienceqa = pytest.mark.skipif(
    not (SCIENCEQA / "problems.json").is_file(), reason=f"no ScienceQA at {SCIENCEQA} (MMA_SCIENCEQA)"
)

# The public code swaps these two.
SWAPPED = {"QCM-AL": "QCM-AE", "QCM-AE": "QCM-AL"}


def golden_problem(case: dict[str, Any]) -> Problem:
    fields = case["problem"]
    unused = {
        "task": "",
        "grade": "",
        "subject": "",
        "topic": None,
        "category": None,
        "skill": None,
        "split": "test",
    }
    given = {**fields, "choices": tuple(fields["choices"])}
    return Problem(pid=case["id"], image=None, **given, **unused)


@every_case
def test_prompts_equal_the_public_ones(case: dict[str, Any]) -> None:
    sample = render(golden_problem(case), case["prompt_format"], None, captions=case["use_caption"])
    assert sample.prompt == case["prompt"]


@every_case
def test_responses_equal_the_public_ones_but_for_two_slips(case: dict[str, Any]) -> None:
    name = SWAPPED.get(case["prompt_format"], case["prompt_format"])
    sample = render(golden_problem(case), name, None)
    assert sample.response == case["target"].removesuffix(" BECAUSE:")


@pytest.mark.skipif(not LLAMA.is_file(), reason=f"no LLaMA tokenizer at {LLAMA} (MMA_GOLDEN)")
def test_llama_ids_are_those_of_the_published_layout() -> None:
    template = make_template("lavin", load_tokenizer(LLAMA), slot_counter(6))
    sample = Sample("1", "Question: Why?\nResponse:", "The answer is A.")
    text, image = template.tokens(sample), template.tokens(replace(sample, images=(Path("a.png"),)))
    assert text.ids[: text.head] == (1, 7084, 29901, 405, 29914, 29909)
    assert image.ids[: image.head] == (1, 7084, 29901, 29871, 0, 0, 0, 0, 0, 0)
    assert image.ids[image.head :] == text.ids[text.head :]
    # "Response", ":", "The": no space where they meet, and none after the line break.
    first = text.supervised.index(True)
    assert text.ids[first - 2 : first + 1] == (5103, 29901, 1576)


@needs_scienceqa
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_real_row_renders_in_every_format(split: str) -> None:
    problems = load_split(SCIENCEQA, split)
    assert problems
    for problem in problems:
        for name in FORMATS:
            sample = render(problem, name, problem.picture(SCIENCEQA), captions=True)
            assert not sample.response.endswith("BECAUSE:")
            assert sample.options[problem.answer] in sample.response


@needs_scienceqa
def test_the_real_set_has_no_faults() -> None:
    result = check(SCIENCEQA)
    assert result.faults == ()
    assert result.splits["test"].problems == len(load_split(SCIENCEQA, "test"))
