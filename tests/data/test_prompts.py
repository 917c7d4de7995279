from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import DataError
from data.prompts import FORMATS, render
from data.scienceqa import Problem

QUESTION, CONTEXT, OPTIONS = "Question: Which is colder?", "Context: N/A", "Options: (A) ice (B) steam"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("QCM-A", [QUESTION, CONTEXT, OPTIONS]),
        ("CQM-A", [CONTEXT, QUESTION, OPTIONS]),
        ("QCML-A", [QUESTION, CONTEXT, OPTIONS, "BECAUSE: Heat flows."]),
        ("QCME-A", [QUESTION, CONTEXT, OPTIONS, "BECAUSE: Ice is cold."]),
        ("QCMLE-A", [QUESTION, CONTEXT, OPTIONS, "BECAUSE: Heat flows. Ice is cold."]),
        ("QCLM-A", [QUESTION, CONTEXT, "BECAUSE: Heat flows.", OPTIONS]),
        ("QCEM-A", [QUESTION, CONTEXT, "BECAUSE: Ice is cold.", OPTIONS]),
        ("QCLEM-A", [QUESTION, CONTEXT, "BECAUSE: Heat flows. Ice is cold.", OPTIONS]),
    ],
)
def test_the_prompt_has_the_parts_in_order(problem: Problem, name: str, lines: list[str]) -> None:
    assert render(problem, name, None).prompt == "\n".join([*lines, "Response:"])


@pytest.mark.parametrize(
    ("name", "response"),
    [
        ("QCM-A", "The answer is A."),
        ("QCM-AL", "The answer is A. BECAUSE: Heat flows."),
        ("QCM-AE", "The answer is A. BECAUSE: Ice is cold."),
        ("QCM-ALE", "The answer is A. BECAUSE: Heat flows. Ice is cold."),
        ("QCM-LA", "Heat flows. The answer is A."),
        ("QCM-EA", "Ice is cold. The answer is A."),
        ("QCM-LEA", "Heat flows. Ice is cold. The answer is A."),
        ("QCM-ELA", "Ice is cold. Heat flows. The answer is A."),
        ("QCML-AE", "The answer is A. BECAUSE: Ice is cold."),
    ],
)
def test_the_response_has_the_parts_in_order(problem: Problem, name: str, response: str) -> None:
    assert render(problem, name, None).response == response


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_announces_reasons_that_are_not_there(problem: Problem, name: str) -> None:
    bare = replace(problem, lecture=" ", solution="")
    sample = render(bare, name, None)
    assert sample.response == "The answer is A."
    assert "BECAUSE" not in sample.prompt


@pytest.mark.parametrize("name", FORMATS)
def test_options_are_bare_answer_sentences(problem: Problem, name: str) -> None:
    sample = render(problem, name, Path("a.png"))
    assert sample.options == ("The answer is A.", "The answer is B.")
    assert sample.gold == 0
    assert sample.options[0] in sample.response
    assert sample.prompt.endswith("\nResponse:")
    assert (sample.id, sample.images, sample.modality) == ("1", (Path("a.png"),), "image")


def test_there_are_the_23_formats_of_the_public_code() -> None:
    assert len(set(FORMATS)) == 23


def test_line_breaks_are_written_out_in_reasons_only(problem: Problem) -> None:
    sample = render(replace(problem, question="Which?\nSay.", solution="One.\nTwo."), "QCM-AE", None)
    assert sample.prompt.startswith("Question: Which?\nSay.\n")
    assert sample.response == "The answer is A. BECAUSE: One.\\nTwo."


def test_captions_join_the_hint(problem: Problem) -> None:
    hinted = replace(problem, hint="Look.")
    assert "Context: Look. some ice\n" in render(hinted, "QCM-A", None, captions=True).prompt
    assert "Context: Look.\n" in render(hinted, "QCM-A", None).prompt
    assert "Context: some ice\n" in render(problem, "QCM-A", None, captions=True).prompt


def test_a_picture_without_caption_is_refused_when_captions_are_wanted(problem: Problem) -> None:
    missing = replace(problem, caption=None)
    with pytest.raises(DataError, match=r"problem 1 has a picture but no caption; add it to captions.json"):
        render(missing, "QCM-A", None, captions=True)
    assert "N/A" in render(replace(missing, image=None), "QCM-A", None, captions=True).prompt


@pytest.mark.parametrize(("name", "near"), [("QCM-ALF", "QCM-ALE"), ("qcm-ale", "QCM-ALE"), ("", "")])
def test_an_unknown_format_names_the_nearest(problem: Problem, name: str, near: str) -> None:
    with pytest.raises(DataError, match=f"no prompt format '{name}'; the nearest are .*{near}"):
        render(problem, name, None)
