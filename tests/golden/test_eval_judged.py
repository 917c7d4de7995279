"""Judged benchmarks and their parsers against what the official code made of the same files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from eval.benchmark import Question
from eval.judge import Request
from eval.judged import Judged, Setting, judged
from eval.reviews import pair_request
from eval.scorers import mmvet, pairs
from eval.scorers.pairs import Pair
from tests.golden.cases import Case, cases, lines_with

READERS: dict[str, Callable[[str], Pair]] = {
    "llava": pairs.read_llava,
    "lmms_wilder": pairs.read_wilder,
    "lmms_wild_current": pairs.read_first_two,
}


def given(*groups: str) -> list[Any]:
    """The cases of some groups, or one that is skipped with a reason."""
    found = [case for group in groups for case in cases(group)]
    return found or [
        pytest.param(None, marks=pytest.mark.skip(reason=f"no golden cases {groups} (MMA_GOLDEN)"))
    ]


def same(found: float, expected: float | str) -> bool:
    expected = float(expected)
    return math.isnan(found) if math.isnan(expected) else found == expected


@pytest.mark.parametrize("case", given("judge_pair_score"), ids=str)
def test_pairs_are_read_as_officially(case: Case) -> None:
    lines = case.lines()
    assert len(lines) == case.official["n"]
    for line in lines:
        columns = line.keys() & READERS.keys()
        assert columns, f"{case}: a line without a known column: {line}"
        for column in columns:
            found, expected = READERS[column](line["review"]), line[column]
            assert all(same(*two) for two in zip(found, expected, strict=True)), (column, line)


def reviewed(line: dict[str, Any]) -> tuple[str | None, Pair]:
    """Category and pair of a line of a review file; old files call the pair "score"."""
    return line.get("category"), Pair(*line["tuple" if "tuple" in line else "score"])


def judged_part(case: Case) -> Judged:
    """The judged half of the benchmark that a case belongs to."""
    names = {"llavabench_wild": "llava_bench", "vicuna80": "vicuna80", "mmvet": "mmvet"}
    found = judged(names[case.name.split("/")[0]])
    assert found is not None
    return found


def check_summary(found: dict[str, pairs.Summary], expected: dict[str, list[float]]) -> None:
    assert {name: list(summary) for name, summary in found.items()} == expected


def flat(official: dict[str, Any]) -> dict[str, list[float]]:
    """The figures of a summary, which may stand beside others."""
    return {
        name: figures
        for name, figures in official.items()
        if isinstance(figures, list) and len(figures) == 3 and not isinstance(figures[0], str)
    }


@pytest.mark.parametrize("case", given("llavabench_wild", "vicuna80"), ids=str)
def test_summaries_are_the_official_ones(case: Case) -> None:
    official = case.official
    expected = official["runs"] if "runs" in official else [flat(official.get("summary", official))]
    assert len(expected) == len(case.paths()) and all(expected), f"{case}: unknown shape"
    for place, summary in enumerate(expected):
        lines = [reviewed(line) for line in case.lines(place)]
        check_summary(pairs.summaries(lines), summary)
        if "sum_first" in official and len(expected) == 1:
            assert pairs.totals([pair for _, pair in lines]) == (
                official["sum_first"],
                official["sum_second"],
            )
        read = judged_part(case).read(case.paths()[place])
        assert [Pair(*read[str(line["question_id"])][0].values) for line in case.lines(place)] == [
            pair for _, pair in lines
        ]
        for line in case.lines(place):
            if line.get("content"):
                assert pairs.read_llava(line["content"]) == reviewed(line)[1]


@pytest.mark.parametrize("case", given("llavabench_wilder"), ids=str)
def test_wilder_is_the_official_score(case: Case) -> None:
    found = []
    for line in case.lines():
        pair = pairs.read_wilder(line["review"])
        assert all(same(*two) for two in zip(pair, line["scores"], strict=True)), line
        found.append(pair)
    assert pairs.summarise(found).relative == case.official["score"]


def loop(case: Case) -> None:
    for line in case.lines():
        asked: list[tuple[float, bool]] = []
        replies = line["judge_replies"]

        def ask(places: Sequence[int], messages: Sequence[str], temperature: float) -> list[str]:
            asked.append((temperature, messages[0].endswith(mmvet.AGAIN)))  # noqa: B023 (called at once)
            return [replies[min(len(asked), len(replies)) - 1]]  # noqa: B023

        (grade,) = mmvet.grade_all(["question"], ask, mmvet.read_grade)
        expected = math.nan if line["score_is_nan"] else line["score"]
        assert same(grade.score, expected), line
        assert len(asked) == line["calls"], line
        assert asked == list(zip(line["temperatures"], line["suffix_added"], strict=True)), line


@pytest.mark.parametrize("case", given("mmvet"), ids=str)
def test_mmvet_is_the_official_one(case: Case) -> None:
    if case.paths()[0].suffix == ".jsonl" and "judge_replies" in case.lines()[0]:
        loop(case)
        return
    names = case.official.keys() & {"cap-score", "cap-int-score"}
    assert names, f"{case}: unknown shape"
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in case.paths()]
    data = next(item for item in contents if "capability" in first_value(item))
    grades = next(item for item in contents if "score" in first_value(item))
    scores = {id_: entry["score"] for id_, entry in grades.items()}
    capabilities = {id_: entry["capability"] for id_, entry in data.items()}
    found = mmvet.tables(capabilities, scores)
    assert {name: found[name] for name in names} == {name: case.official[name] for name in names}
    path = next(path for path in case.paths() if json.loads(path.read_text(encoding="utf-8")) == grades)
    read = judged_part(case).read(path)
    assert {id_: [review.values[0] for review in some] for id_, some in read.items()} == scores
    for entry in grades.values():
        for content, score in zip(entry["content"], entry["score"], strict=True):
            if content and mmvet.read_grade(content) is not None:
                assert mmvet.read_grade(content) == score


def first_value(item: dict[str, Any]) -> Any:
    value = next(iter(item.values()))
    return value if isinstance(value, dict) else {}


MESSAGES = [pytest.param(line, id=name) for name, line in lines_with("prompts", "user_message")]
NO_MESSAGES = pytest.param(None, marks=pytest.mark.skip(reason="no golden judge messages (MMA_GOLDEN)"))


@pytest.mark.parametrize("line", MESSAGES or [NO_MESSAGES])
def test_judge_messages_are_the_official_ones(line: dict[str, Any]) -> None:
    request, judge = graded_request(line) if "preamble" in line else pair_message(line)
    told = {
        "user_message": request.messages[-1]["content"],
        "system_message_sha256": hashlib.sha256(request.messages[0]["content"].encode()).hexdigest(),
        "n_messages": len(request.messages),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "model": judge,
    }
    assert {name: told[name] for name in told.keys() & line.keys()} == {
        name: line[name] for name in told.keys() & line.keys()
    }
    asked = {"id", "question", "answer", "prediction", "preamble"}
    asked |= {"context", "rule", "reference_answer", "candidate_answer", "output_record"}
    assert line.keys() <= told.keys() | asked, "a column that nobody compares"
    if "output_record" in line:
        record = line["output_record"]
        assert pairs.read_llava(record["content"]) == Pair(*record["tuple"])


def judge_of(name: str) -> str:
    found = judged(name)
    assert found is not None
    return found.judge


def graded_request(line: dict[str, Any]) -> tuple[Request, str]:
    half = judged("mmvet")
    assert half is not None
    question = Question("v", line["question"], gold=line["answer"], facts={"preamble": line["preamble"]})
    (request,) = half.requests([question], {"v": line["prediction"]}, Setting())
    return request, half.judge


def pair_message(line: dict[str, Any]) -> tuple[Request, str]:
    context = line["context"]["caption"] if "context" in line else None
    if isinstance(context, list):
        context = "\n".join(context)
    facts = {"reference": line["reference_answer"]["text"]}
    question = Question("q", line["question"]["text"], facts=facts)
    answer = line["candidate_answer"]["text"]
    request = pair_request(question, pairs.Rule(**line["rule"]), answer, False, 0, context)
    return request, judge_of("vicuna80" if context is None else "llava_bench")
