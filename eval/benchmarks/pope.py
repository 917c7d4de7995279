"""POPE: yes or no to whether an object is in a COCO picture, in three ways to choose the absent objects.

The lists of May 2023 are meant, as LLaVA-1.5 used them: the random one has 2910 questions there and 3000
other ones later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.answer_files import (
    add_answer,
    answer_line,
    check_present,
    llava_texts,
    read_answers,
    write_lines,
)
from eval.benchmark import SHORT, Answers, Benchmark, Needed, Published, Question, check_complete
from eval.errors import EvalError
from eval.files import read_lines
from eval.scorers import pope
from eval.scores import Mark, Score, Scored

# LLaVA's list holds all three and keeps their ids apart by these offsets.
OFFSETS = {"random": 10_000_000, "popular": 20_000_000, "adversarial": 0}
LINE = "line "  # begins the key of an answer that names its question by its place alone
LISTS = "https://github.com/RUCAIBox/POPE at commit e3e39262, output/coco"


def needs(split: str) -> list[Needed]:
    """The three lists and the pictures."""
    lists = [Needed(_list(name), LISTS) for name in OFFSETS]
    return [*lists, Needed("val2014", "http://images.cocodataset.org/zips/val2014.zip")]


def _list(name: str) -> str:
    return f"coco/coco_pope_{name}.json"


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The questions of all three lists."""
    questions = [question for name in OFFSETS for question in _questions(folder, name)]
    check_present("pope", (question.images[0] for question in questions))
    return questions


def _questions(folder: Path, name: str) -> list[Question]:
    questions: dict[str, Question] = {}
    path = folder / _list(name)
    if not path.is_file() and (folder / path.name).is_file():  # as LLaVA's readers keep them
        path = folder / path.name
    for row in read_lines(path):
        label = row.text("label")
        if label not in ("yes", "no"):
            raise EvalError(f"{row.where}: label is {label!r}, not yes or no; fetch the file again")
        number = OFFSETS[name] + row.whole("question_id")
        if str(number) in questions:
            raise EvalError(
                f"{row.where}: a second question {row.whole('question_id')}; fetch the file again"
            )
        questions[str(number)] = Question(
            id=str(number),
            prompt=f"{row.text('text')}\n{SHORT}",
            images=(folder / "val2014" / row.text("image"),),
            options=("Yes", "No"),
            gold=label,
            facts={"category": name, "image": row.text("image")},
        )
    if not questions:
        raise EvalError(f"{path}: holds no questions; fetch the file again")
    return list(questions.values())


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """The five figures of every answered list, and their mean F1, which is the number that is quoted."""
    answers = _by_place(questions, answers)
    given = {one.facts["category"] for one in questions if one.id in answers}
    left_out = [name for name in _grouped(questions, "category") if given and name not in given]
    questions = [one for one in questions if one.facts["category"] not in left_out]
    check_complete(BENCHMARK, questions, answers)
    read = {question.id: pope.read(answers[question.id]) for question in questions}
    by_picture: defaultdict[str, dict[str, pope.Counts]] = defaultdict(dict)
    for picture, some in _grouped(questions, "image").items():
        for name, few in _grouped(some, "category").items():
            by_picture[picture][name] = pope.Counts.of((read[question.id], question.gold) for question in few)
    # The questions about a picture depend on each other, so pictures are drawn for the intervals.
    pictures = list(by_picture.values())
    asked = [name for name in OFFSETS if any(name in picture for picture in pictures)]
    scores = {"mean F1": Score.statistic(lambda some: _mean_f1(some, asked), pictures)}
    official: dict[str, Any] = {}
    empty: list[str] = []
    for name in asked:
        split = [picture[name] for picture in pictures if name in picture]
        counts = _sum(split)
        scores |= {f"{name} {figure}": value for figure, value in _scores(counts, split).items()}
        official[name] = _official(counts)
        empty += [f"{name} {figure}" for figure in counts.empty]
    notes: dict[str, Any] = {"official": official}
    if left_out:
        notes["warning"] = f"mean F1 is over {', '.join(asked)} alone; {', '.join(left_out)} not answered"
    if empty:
        notes["zero denominators"] = empty
    marks = {question.id: _mark(read[question.id], question) for question in questions}
    return Scored(scores, marks, notes)


def _by_place(questions: Sequence[Question], answers: Answers) -> Answers:
    """The answers by id; POPE's own lines have none, and stand in the order of one list, or of all three."""
    if not any(key.startswith(LINE) for key in answers):
        return answers
    lists = _grouped(questions, "category")
    if len(lists) > 1:
        lists[" and ".join(lists)] = [one for some in lists.values() for one in some]
    asked = [key.partition(": ")[2].strip() for key in answers]
    fitting = [name for name, some in lists.items() if _is_of(some, asked)]
    if len(fitting) != 1:
        raise EvalError(
            f"pope: the {len(answers)} answers stand in the order of {' or of '.join(fitting) or 'no list'}; "
            "give each line its question as in the list"
        )
    return {one.id: text for one, text in zip(lists[fitting[0]], answers.values(), strict=True)}


def _is_of(questions: Sequence[Question], asked: Sequence[str]) -> bool:
    return len(questions) == len(asked) and all(
        text in ("", one.prompt.partition("\n")[0].strip())
        for one, text in zip(questions, asked, strict=True)
    )


def _grouped(questions: Iterable[Question], fact: str) -> dict[str, list[Question]]:
    groups: defaultdict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.facts[fact]].append(question)
    return groups


def _sum(counts: Iterable[pope.Counts]) -> pope.Counts:
    return pope.Counts(*map(sum, zip(*counts, strict=True)))


def _mean_f1(pictures: Sequence[dict[str, pope.Counts]], asked: Sequence[str]) -> float:
    values = []
    for name in asked:
        some = [picture[name] for picture in pictures if name in picture]
        values.append(_sum(some).f1 if some else 0.0)
    return sum(values) / len(values)


def _scores(counts: pope.Counts, pictures: Sequence[pope.Counts]) -> dict[str, Score]:
    return {
        "Accuracy": Score.of(counts.tp + counts.tn, counts.total),
        "Precision": _share(counts.tp, counts.tp + counts.fp),
        "Recall": _share(counts.tp, counts.tp + counts.fn),
        "F1 score": Score.statistic(lambda some: _sum(some).f1, pictures),
        "Yes ratio": Score.of(counts.yes, counts.total),
    }


def _share(right: int, count: int) -> Score:
    """A share; where it is one of nothing the official script fails, and here it is 0 and says nothing."""
    return Score.of(right, count) if count else Score(0.0, 0.0, 1.0, 0)


def _official(counts: pope.Counts) -> dict[str, Any]:
    cells = {"TP": counts.tp, "FP": counts.fp, "TN": counts.tn, "FN": counts.fn}
    shares = (counts.f1, counts.accuracy, counts.precision, counts.recall, counts.yes_ratio)
    return {**cells, "F1, accuracy, precision, recall, yes": [round(share, 3) for share in shares]}


def _mark(read: str, question: Question) -> Mark:
    return Mark(read, float(read == question.gold))


def read(path: Path) -> dict[str, str]:
    """The answers of LLaVA's answer lines, or of POPE's own, which name no id."""
    rows = read_answers(path)
    if any("question_id" in row.values for row in rows):
        return llava_texts(path)
    answers: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        add_answer(answers, f"{LINE}{number}: {row.text('question', '')}", row.text("answer"), row.where)
    return answers


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """LLaVA's answer lines; the official script pairs them with the labels by their order."""
    write_lines(path, (answer_line(int(one.id), one.prompt, answers[one.id]) for one in questions))


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    version=1,
    rule="LLaVA's eval_pope.py, which is the rule of POPE's evaluate.py",
    splits=("coco",),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix=".jsonl",
    max_new_tokens=128,
    sizes={"coco": 2910 + 3000 + 3000},
    published=(
        Published("LLaVA-1.5-7B", "mean F1", 85.9, "LLaVA MODEL_ZOO"),
        Published("LLaVA-1.5-13B", "mean F1", 85.9, "LLaVA MODEL_ZOO"),
        Published("LLaVA-NeXT-Vicuna-7B", "mean F1", 86.5, "LLaVA MODEL_ZOO"),
        Published("TinyLLaVA-Phi-2-SigLIP-3.1B", "mean F1", 87.2, "TinyLLaVA_Factory README"),
    ),
)
