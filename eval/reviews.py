"""Reviews of pairs: asking a judge which of two answers is better, the review file, and the scores.

LLaVA-Bench, LLaVA-Bench Wilder and Vicuna-80 differ in their messages and their reader only. The official
review file is JSON Lines with one line a question, one file for each run of the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.answer_files import answer_line, check_own, refuse_none, write_lines
from eval.benchmark import Answers, Question
from eval.errors import EvalError
from eval.files import ANEW, Row, read_lines, read_object, row_of
from eval.judge import Judge, Request
from eval.judged import Judged, Review, Reviews, Setting, check_reviews, spread, text_digest
from eval.scorers.pairs import CHECKER, UNREAD, FloatArray, Pair, Rule, message, relative, summaries
from eval.scores import Mark, Score, Scored

LLAVA_BENCH = "llava_bench"
"""The benchmark whose categories begin with its name."""

SWAPPED = "swapped"
"""In the name of a file whose pairs have the answer first."""


@dataclass(frozen=True)
class Comparing:
    """How one benchmark compares two answers.

    Args:
        benchmark: Its name.
        ask: (question, answer, swapped, draw) -> the request.
        read: The pair in a reply.
        category: Of a question, as the review file names it; None where there are none.
        columns: Names of the relative score and of both means.
        swaps: Whether the answer may stand first: not where the rule says which of the two is right.
    """

    benchmark: str
    ask: Callable[[Question, str, bool, int], Request]
    read: Callable[[str], Pair]
    category: Callable[[Question], str | None]
    columns: tuple[str, str, str]
    swaps: bool = True

    def judged(self, judge: str) -> Judged:
        """The judged half of the benchmark, whose published numbers are by this judge."""
        return Judged(
            judge=judge,
            pairs=True,
            requests=self.requests,
            review=self.review,
            score=self.score,
            read=self.read_file,
            write=self.write_file,
            swaps=self.swaps,
        )

    def requests(self, questions: Sequence[Question], answers: Answers, setting: Setting) -> list[Request]:
        """What the judge is asked: run by run, each in one order or in both."""
        check_own(self.benchmark, questions, answers)
        return [
            self.ask(question, answers[question.id], swapped, run)
            for run, swapped in _rounds(setting)
            for question in questions
            if question.id in answers
        ]

    def review(
        self, questions: Sequence[Question], answers: Answers, judge: Judge, setting: Setting
    ) -> dict[str, list[Review]]:
        """Ask the judge, all at once, and read its replies."""
        check_own(self.benchmark, questions, answers)
        asked = [question for question in questions if question.id in answers]
        replies = iter(judge.ask(self.requests(asked, answers, setting)))
        found: dict[str, list[Review]] = {question.id: [] for question in asked}
        for _, swapped in _rounds(setting):
            for question in asked:
                reply = next(replies)
                values = _values(self.read(reply), swapped)
                found[question.id].append(Review(judge.name, reply, values, swapped))
        return found

    def score(self, questions: Sequence[Question], answers: Answers, reviews: Reviews) -> Scored:
        """The official summary over the answers that were reviewed, as the mean over the judge's runs."""
        del answers  # the reviews say all
        check_own(self.benchmark, questions, reviews)
        asked, _ = check_reviews(self.benchmark, questions, reviews, whole=False)
        given = [[Pair(*review.values) for review in reviews[question.id]] for question in asked]
        unread = sum(not pair.read for pairs in given for pair in pairs)
        if unread == sum(map(len, given)):
            return _ungraded(asked, unread, {question.id: _mark([]) for question in asked})
        runs = _runs(asked, reviews)
        # questions x runs x 2: where both orders were judged, the mean of both
        table = np.array([[np.mean([pairs[place] for place in run], 0) for run in runs] for pairs in given])
        by_run = [relative(table[:, [place]]) for place in range(len(runs))]
        mean, deviation = spread(by_run)
        marks = {question.id: _mark(pairs) for question, pairs in zip(asked, given, strict=True)}
        printed = [
            summaries([(self.category(one), pairs[place]) for one, pairs in zip(asked, given, strict=True)])
            for place in range(len(given[0]))
        ]
        orders = ["answer first" if review.swapped else "reference first" for review in reviews[asked[0].id]]
        return Scored(
            scores=self._scores(asked, table),
            marks=marks,
            notes={
                "official": [{name: list(figures) for name, figures in one.items()} for one in printed],
                "columns": ["relative", *self.columns[1:]],
                "orders": orders,
                **_warning(unread, sum(map(len, given))),
                "unread pairs": unread,
                "relative by run": by_run,
                "mean and deviation over runs": [mean, deviation],
                "judges": sorted({review.model for found in reviews.values() for review in found}),
                **rule_notes(asked),
            },
        )

    def _scores(self, asked: Sequence[Question], table: FloatArray) -> dict[str, Score]:
        """The relative score of all and of each category, then both means times ten."""
        groups: dict[str, list[int]] = {self.columns[0]: list(range(len(asked)))}
        categories = [self.category(question) for question in asked]
        for category in sorted({name for name in categories if name is not None}):
            groups[category] = [place for place, name in enumerate(categories) if name == category]
        scores = {
            name: Score.statistic(lambda some: relative(table[np.asarray(some)]), places)
            for name, places in groups.items()
        }
        for column, name in enumerate(self.columns[1:]):
            scores[name] = Score.mean(table[:, :, column].mean(1).tolist(), scale=10.0)
        return scores

    def read_file(self, path: Path) -> dict[str, list[Review]]:
        """A review file, or a folder with one for each run (and order), in the order of their names."""
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise EvalError(
                f"{path}: no review files (*.jsonl) in this folder; name a file or another folder"
            )
        found: dict[str, list[Review]] = {}
        for number, file in enumerate(files):
            seen = set()
            rows = read_lines(file, ANEW)
            refuse_none(file, rows)
            for row in rows:
                id_ = row.id("question_id" if "question_id" in row.values else "id")
                if id_ in seen:
                    raise EvalError(f"{row.where}: question {id_!r} is reviewed twice; keep one of the lines")
                seen.add(id_)
                # Ids are small numbers in all three benchmarks; only one has these categories.
                of_llava_bench = str(row.values.get("category", "")).startswith(LLAVA_BENCH)
                if "category" in row.values and of_llava_bench != (self.benchmark == LLAVA_BENCH):
                    raise EvalError(
                        f"{row.where}: holds answers to another benchmark than {self.benchmark}; name the "
                        "reviews of this one"
                    )
                if number and id_ not in found:
                    raise EvalError(
                        f"{row.where}: question {id_!r} is not in {files[0].name}; keep runs over "
                        "the same questions"
                    )
                found.setdefault(id_, []).append(_review(row, SWAPPED in file.name))
        return found

    def write_file(self, path: Path, questions: Sequence[Question], reviews: Reviews) -> None:
        """The official file; a folder of them where there are several runs or orders."""
        asked, count = check_reviews(self.benchmark, questions, reviews, whole=False)
        first = reviews[asked[0].id]
        files = (
            [path] if count == 1 else [path / _name(place, first[place].swapped) for place in range(count)]
        )
        if count > 1:
            # of an earlier time with more runs; they would be read as runs of this one
            for old in set(path.glob("review[0-9][0-9]*.jsonl")) - set(files):
                old.unlink()
        for place, file in enumerate(files):
            lines = [
                _line(number, question, reviews[question.id][place], self.category(question))
                for number, question in enumerate(asked, 1)
            ]
            write_lines(file, lines)


def by_id(path: Path) -> dict[str, Row]:
    """The lines of a file by their question_id; there must be some, and no two of one question."""
    found: dict[str, Row] = {}
    for row in read_lines(path):
        id_ = row.id("question_id")
        if id_ in found:
            raise EvalError(f"{row.where}: a second line for question {id_}; fetch the file again")
        found[id_] = row
    if not found:
        raise EvalError(f"{path}: is empty; fetch the file again")
    return found


def rules_of(path: Path) -> dict[str, Rule]:
    """The rules of a rule file by category; none where the file is not there, which judging alone needs."""
    if not path.exists():
        return {}
    rows = {name: row_of(value, f"{path}: {name}") for name, value in read_object(path).items()}
    return {
        name: Rule(row.text("role"), row.text("prompt")) for name, row in rows.items() if "role" in row.values
    }


def rule_notes(questions: Sequence[Question]) -> dict[str, Any]:
    """The digest of every rule that was used."""
    rules = {question.facts["rule"].prompt for question in questions if "rule" in question.facts}
    return {"rule_sha256": sorted(map(text_digest, rules))}


def pair_request(
    question: Question, rule: Rule, answer: str, swapped: bool, draw: int, context: str | None = None
) -> Request:
    """The messages of LLaVA's review scripts; the reference comes first unless it is swapped."""
    first, second = question.facts["reference"], answer
    if swapped:
        first, second = second, first
    messages = (
        {"role": "system", "content": CHECKER},
        {"role": "user", "content": message(rule, question.prompt, first, second, context)},
    )
    return Request(messages, 0.2, 1024, draw, question.id)


def write_texts(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """LLaVA's answer lines."""
    write_lines(
        path,
        (
            answer_line(one.facts["question_id"], one.prompt, answers[one.id])
            for one in questions
            if one.id in answers
        ),
    )


def _rounds(setting: Setting) -> list[tuple[int, bool]]:
    orders = (False, True) if setting.swapped else (False,)
    return [(run, swapped) for run in range(setting.runs) for swapped in orders]


def _runs(asked: Sequence[Question], reviews: Reviews) -> list[list[int]]:
    """The places of each run's reviews; a swapped review belongs to the run of the one before it."""
    order = [review.swapped for review in reviews[asked[0].id]]
    for question in asked:
        if [review.swapped for review in reviews[question.id]] != order:
            raise EvalError(
                f"the reviews of question {question.id!r} are in another order than those of "
                f"{asked[0].id!r}; judge again"
            )
    runs: list[list[int]] = []
    for place, swapped in enumerate(order):
        if swapped and place and not order[place - 1]:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _warning(unread: int, count: int) -> dict[str, str]:
    """What a reader of the table must know where some replies of the judge hold no grades."""
    if not unread:
        return {}
    return {
        "warning": f"{unread} of {count} reviews hold no grades and count as -1, as in the official tables"
    }


def _ungraded(asked: Sequence[Question], count: int, marks: dict[str, Mark]) -> Scored:
    """No scores: the -1 of both answers would come out as 100 %."""
    why = f"none of {count} reviews holds grades that can be read; try another judge"
    return Scored({}, marks, {"judged": why, "unread pairs": count})


def _name(place: int, swapped: bool) -> str:
    return f"review{place + 1:02}_{SWAPPED}.jsonl" if swapped else f"review{place + 1:02}.jsonl"


def _values(pair: Pair, swapped: bool) -> tuple[float, float]:
    """A pair as reference and answer. The official code lets "nan" and "inf" into the means and so makes the
    score "nan"; here they count as not read."""
    first, second = pair if np.isfinite(pair).all() else UNREAD
    return (second, first) if swapped else (first, second)


def _mark(pairs: Sequence[Pair]) -> Mark:
    """What the judge said of one answer, and its grade as a share of the ten points, over all runs."""
    read = [pair for pair in pairs if pair.read]
    if not read:
        return Mark(None, None)
    shares = [min(max(pair.second / 10, 0.0), 1.0) for pair in read]
    return Mark("; ".join(f"{pair.first:g} {pair.second:g}" for pair in read), sum(shares) / len(shares))


def _review(row: Row, swapped: bool) -> Review:
    """One line; old files call the pair `score` and the reply `text`."""
    name = "tuple" if "tuple" in row.values else "score"
    pair = row.any(name)
    if not (isinstance(pair, list) and len(pair) == 2 and all(_is_number(value) for value in pair)):
        raise EvalError(f"{row.where}: {name} is not a list of two numbers; judge this question again")
    content = row.text("content" if "content" in row.values else "text", "")
    return Review(row.text("model", "unknown"), content, _values(Pair(*map(float, pair)), swapped), swapped)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _line(number: int, question: Question, review: Review, category: str | None) -> dict[str, Any]:
    """One line in the official shape, with the judge's name beside it."""
    key = question.facts.get("question_id", question.id)
    answers = [question.facts.get("reference_id", "reference"), str(key)]
    if review.swapped:
        answers.reverse()
    kind = {} if category is None else {"category": category}
    return {
        "id": number,
        "question_id": key,
        "answer1_id": answers[0],
        "answer2_id": answers[1],
        **kind,
        "content": review.content,
        "tuple": list(reversed(review.values)) if review.swapped else list(review.values),
        "model": review.model,
    }
