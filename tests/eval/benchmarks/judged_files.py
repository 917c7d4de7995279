"""Small sets of the judged benchmarks in their official layouts, and a judge that replies as a test says."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eval.benchmark import Question, find
from eval.judge import Estimate, Request, estimate
from eval.judged import Judged, judged
from tests.eval.benchmarks.short_answer_files import picture, write_json, write_jsonl

RULES = {
    f"llava_bench_{name}": {"role": "Assistant", "prompt": f"Rule of {name}."}
    for name in ("conv", "detail", "complex")
}


class ScriptedJudge:
    """Replies by a function of the request, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, reply: Callable[[Request], str]) -> None:
        self.asked: list[Request] = []
        self._reply = reply

    def ask(self, requests: Sequence[Request]) -> list[str]:
        """The function's replies."""
        self.asked += requests
        return [self._reply(request) for request in requests]

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """All of them."""
        return estimate(requests, 0)


def judged_part(name: str) -> Judged:
    """The judged half of a benchmark that has one."""
    found = judged(name)
    assert found is not None
    return found


def load(name: str, folder: Path, split: str | None = None) -> list[Question]:
    """The questions of a set as the runner gets them."""
    benchmark = find(name)
    return benchmark.load(folder, split or benchmark.splits[0], folder / "unpacked")


def llava_bench(folder: Path) -> None:
    """Three questions, one of each category, about two pictures."""
    categories = ["conv", "detail", "complex"]
    questions = [
        {
            "question_id": place,
            "image": f"00{place % 2 + 1}.jpg",
            "category": name,
            "text": f"What of {name}?",
        }
        for place, name in enumerate(categories)
    ]
    write_jsonl(folder / "questions.jsonl", questions)
    contexts: list[dict[str, Any]] = [
        {"id": "001", "image": "001.jpg", "caption": "A hill.\nA sea."},
        {"id": "002", "image": "002.jpg", "caption": ["A street.", "A car."]},
    ]
    write_jsonl(folder / "context.jsonl", contexts)
    references = [
        {"question_id": place, "text": f"Reference {place}", "answer_id": f"r{place}"} for place in range(3)
    ]
    write_jsonl(folder / "answers_gpt4.jsonl", references)
    write_json(folder / "rule.json", RULES)
    for name in ("001.jpg", "002.jpg"):
        picture(folder / "images" / name)


def vicuna80(folder: Path) -> None:
    """Three questions; one category has a rule of its own, and one question is written with turns."""
    questions: list[dict[str, Any]] = [
        {"question_id": 1, "text": "How to sleep?", "category": "generic"},
        {"question_id": 2, "turns": ["Write a loop."], "category": "coding"},
        {"question_id": 3, "text": "What if?", "category": "counterfactual"},
    ]
    write_jsonl(folder / "question.jsonl", questions)
    answers = [
        {"question_id": place, "text": f"Baseline {place}", "answer_id": f"b{place}"} for place in (1, 2, 3)
    ]
    write_jsonl(folder / "answer_gpt35.jsonl", answers)
    rules = {
        name: {"role": "Assistant", "prompt": f"Rule of {name}."} for name in ("default", "coding", "math")
    }
    write_json(folder / "rule.json", rules)


def mmvet(folder: Path) -> None:
    """Three samples; two need the same two capabilities."""
    samples = {
        "v1_0": ("What is x?", "-1<AND>-5", ["ocr", "math"]),
        "v1_1": ("Who is it?", "A man <OR> Bob", ["rec"]),
        "v1_2": ("What is y?", "7", ["math", "ocr"]),
    }
    content = {
        id_: {
            "imagename": f"{id_}.png",
            "question": text,
            "answer": answer,
            "capability": needed,
            "imagesource": "",
        }
        for id_, (text, answer, needed) in samples.items()
    }
    write_json(folder / "mm-vet.json", content)
    write_json(folder / "bard_set.json", ["v1_2", "v1_0"])
    (folder / "preamble.txt").write_text("Compare.\n", encoding="utf-8")
    for id_ in samples:
        picture(folder / "images" / f"{id_}.png")


def png(colour: tuple[int, int, int]) -> bytes:
    """A picture as the bytes of its file."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def wilder(folder: Path) -> None:
    """Two samples in a Parquet file as Hugging Face publishes them."""
    import pyarrow  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    rows = [
        {"image": {"bytes": png((200, 10, 10)), "path": "a.png"}, "Question": "Red?", "Answer": "It is red."},
        {
            "image": {"bytes": png((10, 10, 200)), "path": "b.png"},
            "Question": "Blue?",
            "Answer": "It is blue.",
        },
    ]
    folder.joinpath("small").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "small" / "test-00000-of-00001.parquet")
    (folder / "rule.txt").write_text("Rule.\nOf the picture.\n", encoding="utf-8")
