"""MME: two yes-or-no questions about every picture, in ten subtasks of perception and four of cognition.

Asked as LLaVA asks, whose published numbers stand beside: its short-answer line in place of MME's request.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.answer_files import add_answer, only_scoring, read_answers, refuse_none
from eval.benchmark import SHORT, Answers, Benchmark, Needed, Published, Question, check_complete
from eval.errors import EvalError
from eval.files import ANEW, read_text
from eval.resampling import Counts, score_of_groups, score_of_kinds
from eval.results import write_text
from eval.scorers import mme
from eval.scores import Mark, Scored

RELEASE = "MME_Benchmark_release_version"
PICTURES = (".jpg", ".png")
SIZE = 2374


def needs(split: str) -> list[Needed]:
    """The folder of every subtask."""
    source = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (MME, on request)"
    return [Needed(f"{RELEASE}/{name}", source) for tasks in mme.TASKS.values() for name in tasks]


def load(folder: Path, split: str, unpacked: Path) -> list[Question]:
    """The questions of all subtasks, both about a picture in a row."""
    return [
        question
        for tasks in mme.TASKS.values()
        for name in tasks
        for question in _task(folder / RELEASE / name, name)
    ]


def _task(folder: Path, name: str) -> list[Question]:
    """Five subtasks keep pictures and texts in folders of their own, the others side by side."""
    texts, pictures = folder / "questions_answers_YN", folder / "images"
    if not pictures.is_dir():
        texts = pictures = folder
    files = sorted(texts.glob("*.txt"))
    if not files:
        raise EvalError(
            f"{texts}: holds no questions; `python -m eval prepare mme` says where they are published"
        )
    found = {path: [pictures / f"{path.stem}{suffix}" for suffix in PICTURES] for path in files}
    existing = {path: [one for one in some if one.is_file()] for path, some in found.items()}
    missing = [path for path in files if not existing[path]]
    if missing and not only_scoring():
        raise EvalError(
            f"mme: {len(missing)} of {len(files)} pictures of {name} are missing (the first is "
            f"{found[missing[0]][0]}); `python -m eval prepare mme` says where they are published"
        )
    return [
        question for path in files for question in _questions(path, (existing[path] or found[path])[0], name)
    ]


def _questions(path: Path, picture: Path, name: str) -> list[Question]:
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if len(lines) != mme.QUESTIONS:
        raise EvalError(f"{path}: {len(lines)} lines, not {mme.QUESTIONS}; fetch the file again")
    found = {}
    for number, line in enumerate(lines, 1):
        question, *rest = line.split("\t")
        if len(rest) != 1 or rest[0] not in ("Yes", "No"):
            raise EvalError(
                f"{path}: line {number}: not a question, a tab, and Yes or No; fetch the file again"
            )
        key = _id(name, picture.name, question)
        if key in found:
            raise EvalError(f"{path}: line {number}: asks the same as line 1; fetch the file again")
        found[key] = Question(
            id=key,
            prompt=f"{mme.bare(question)}\n{SHORT}",
            images=(picture,),
            options=("Yes", "No"),
            gold=rest[0],
            facts={"category": name, "question": question},
        )
    return list(found.values())


def _id(name: str, picture: str, question: str) -> str:
    """All that an official result file says of a question; LLaVA names pictures there by their text file."""
    return f"{name}/{picture.partition('.')[0]}: {mme.bare(question)}"


def score(questions: Sequence[Question], answers: Answers) -> Scored:
    """The sums of both halves, and the scores of the subtasks."""
    check_complete(BENCHMARK, questions, answers)
    read = {question.id: mme.read(answers[question.id]) for question in questions}
    pictures: defaultdict[str, defaultdict[Path, list[mme.Pair]]] = defaultdict(lambda: defaultdict(list))
    for one in questions:
        pictures[one.facts["category"]][one.images[0]].append((read[one.id], one.gold.lower()))
    counts = {
        name: [outcomes[kind] for kind in mme.OUTCOMES]
        for name, some in pictures.items()
        if (outcomes := Counter(mme.outcome(picture) for picture in some.values()))
    }
    # Pictures are drawn within their subtask for the intervals, so the sizes of subtasks stay as they are.
    scores = {
        half: score_of_groups(_points, [counts[name] for name in names if name in counts], scale=1)
        for half, names in mme.TASKS.items()
    }
    official: dict[str, Any] = {}
    for name in (name for names in mme.TASKS.values() for name in names if name in counts):
        found = mme.task(list(pictures[name].values()))
        scores[name] = score_of_kinds(_points, counts[name], scale=1)
        official[name] = {**found._asdict(), "score": found.score}
    marks = {
        one.id: Mark(_usable(read[one.id]), float(read[one.id] == one.gold.lower())) for one in questions
    }
    return Scored(scores, marks, {"official": official})


def _usable(read: str) -> str | None:
    return None if read == "other" else read


def _points(counts: Counts) -> float:
    """The score of a subtask from how many of its pictures came off how."""
    return sum(100 * share for share in mme.shares(dict(zip(mme.OUTCOMES, counts.tolist(), strict=True))))


def read(path: Path) -> dict[str, str]:
    """The responses in a folder of official result files, one for every subtask, or LLaVA's answer lines."""
    if path.suffix == ".jsonl":
        return _read_lines(path)
    if not path.is_dir():
        raise EvalError(f"{path}: is no folder; name the folder with a text file for every subtask of MME")
    answers: dict[str, str] = {}
    for name in (name for names in mme.TASKS.values() for name in names):
        file = path / f"{name}.txt"
        for number, line in enumerate(read_text(file, remedy=ANEW).split("\n"), 1):
            if not line:
                continue
            where, cells = f"{file}: line {number}", line.split("\t")
            if len(cells) != 4:
                raise EvalError(
                    f"{where}: {len(cells)} cells, not picture, question, truth and response; take tabs and "
                    "line breaks out of the response"
                )
            add_answer(answers, _id(name, cells[0], cells[1]), cells[3], where)
    refuse_none(path, answers)
    return answers


def _read_lines(path: Path) -> dict[str, str]:
    """LLaVA's id names the subtask and the picture; the prompt tells which of its two questions is meant."""
    answers: dict[str, str] = {}
    for row in read_answers(path):
        id_, asked = row.text("question_id"), row.text("prompt").replace(SHORT, "").strip()
        key = _id(id_.partition("/")[0], id_.rpartition("/")[2], asked)
        add_answer(answers, key, row.text("text"), row.where)
    return answers


def write(path: Path, questions: Sequence[Question], answers: Answers) -> None:
    """A text file for every subtask, as the official script reads them."""
    for name in (name for names in mme.TASKS.values() for name in names):
        lines = [
            "\t".join((one.images[0].name, one.facts["question"], one.gold, _cell(answers[one.id]))) + "\n"
            for one in questions
            if one.facts["category"] == name
        ]
        write_text(path / f"{name}.txt", "".join(lines))


def _cell(response: str) -> str:
    """A response in one cell; what is put for a tab or a line break does not change how it is read."""
    return response.translate(dict.fromkeys(map(ord, "\t\n\r"), " "))


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    version=1,
    rule="MME's calculation.py",
    splits=("test",),
    needs=needs,
    load=load,
    score=score,
    read=read,
    write=write,
    suffix="",
    max_new_tokens=128,
    sizes={"test": SIZE},
    published=(
        Published("LLaVA-1.5-7B", "Perception", 1510.7, "LLaVA MODEL_ZOO"),
        Published("LLaVA-1.5-13B", "Perception", 1531.3, "LLaVA MODEL_ZOO"),
        Published("LLaVA-NeXT-Vicuna-7B", "Perception", 1519.0, "LLaVA MODEL_ZOO"),
        Published("LLaVA-NeXT-Vicuna-7B", "Cognition", 332.0, "LLaVA MODEL_ZOO"),
        Published("TinyLLaVA-Phi-2-SigLIP-3.1B", "Perception", 1466.4, "TinyLLaVA_Factory README"),
        Published("LaVIN-13B", "Perception", 963.6, "MME leaderboard README"),
        Published("LaVIN-13B", "Cognition", 249.64, "MME leaderboard README"),
    ),
)
