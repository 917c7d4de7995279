"""Our model inside lmms-eval: tasks with pictures that are made here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

pytest.importorskip("lmms_eval", reason="the program is an extra: pip install lmms_eval")

import datasets
from lmms_eval.api.instance import unwrap_generation_output
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from data.packing import PackedBatch, collate
from data.pictures import Prepared, slot_counter
from data.sample import Sample
from data.template import make_template
from eval.engines.__main__ import main
from eval.engines.lmms_eval import MMALMM
from eval.errors import EvalError
from models.build import System
from models.errors import ModelError
from models.generate import Sampling, generate
from tests.eval.engines.requests_of import Request
from tests.models.test_beam import sharpened

COLOURS = ("red", "green", "blue", "black", "white")
SUFFIX = "\nAnswer the question using a single word or phrase."
CODE = """
def shown(doc):
    return [doc["image"]] if doc["image"] is not None else []

def asked(doc, lmms_eval_specific_kwargs=None):
    return doc["question"] + "\\nAnswer the question using a single word or phrase."

def judged(doc, results):
    return {"right": float(results[0] == doc["answer"]), "length": float(len(results[0]))}
"""
WRITTEN = """
task: mini_shapes
dataset_path: {root}/set
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: generate_until
doc_to_visual: !function code.shown
doc_to_text: !function code.asked
doc_to_target: answer
process_results: !function code.judged
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
  top_p: 0
  num_beams: {beams}
  do_sample: false
  image_aspect_ratio: original
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
  - metric: length
    aggregation: mean
    higher_is_better: true
metadata:
  version: 0.0
"""
CHOSEN = """
task: mini_choice
dataset_path: {root}/set
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: multiple_choice
doc_to_visual: !function code.shown
doc_to_text: !function code.asked
doc_to_choice: ["red", "green", "dark blue", "black", "white as snow"]
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 0.0
"""
OPTIONS = ("red", "green", "dark blue", "black", "white as snow")


def drawn(place: int) -> Image.Image:
    picture = Image.new("RGB", (40, 30), COLOURS[place])
    ImageDraw.Draw(picture).ellipse((5, 5, 10 + 4 * place, 25), fill=COLOURS[place - 1])
    return picture


def rows() -> list[dict[str, Any]]:
    """Five questions, the last without a picture."""
    return [
        {
            "question": f"Which colour has the ground of picture {place}?",
            "image": drawn(place) if place < 4 else None,
            "answer": colour,
            "gold": place,
        }
        for place, colour in enumerate(COLOURS)
    ]


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder with two tasks and their data."""
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "image": datasets.Image(),
            "answer": datasets.Value("string"),
            "gold": datasets.Value("int64"),
        }
    )
    made = datasets.Dataset.from_list(rows(), features=features)
    datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "set")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "code.py").write_text(CODE)
    (folder / "mini_shapes.yaml").write_text(WRITTEN.format(root=tmp_path, beams=1))
    (folder / "mini_choice.yaml").write_text(CHOSEN.format(root=tmp_path))
    return folder


@pytest.fixture
def system(tiny_system) -> System:
    found = tiny_system()
    sharpened(found.model.decoder.head.weight)
    return found


def run(system: System, tasks: Path, name: str, **settings: Any) -> dict[str, Any]:
    manager = TaskManager("ERROR", include_path=str(tasks), include_defaults=False)
    found: dict[str, Any] = simple_evaluate(
        model=MMALMM(system), tasks=[name], task_manager=manager, bootstrap_iters=0, **settings
    )
    return found


def batch(system: System, place: int, response: str = "") -> tuple[PackedBatch, tuple[bool, ...]]:
    """One question of the data as the adapter was trained to see it."""
    row = rows()[place]
    images = (Path("picture"),) if row["image"] is not None else ()
    template = make_template("lavin", system.tokenizer, slot_counter(system.image_slots))
    tokens = template.tokens(Sample("x", row["question"] + SUFFIX, "", images=images), response=response)
    shown = Prepared(system.preprocess(row["image"]), (40, 30)) if images else None
    return collate([tokens], lambda _: shown), tokens.supervised


def test_a_task_is_answered_as_by_our_own_generation(system, tasks):
    found = run(system, tasks, "mini_shapes")
    texts = [generate(system, batch(system, place)[0], Sampling(8))[0] for place in range(5)]
    samples = sorted(found["samples"]["mini_shapes"], key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"][0] for sample in samples] == texts
    assert len(set(texts)) > 1
    scores = found["results"]["mini_shapes"]
    assert scores["right,none"] == sum(
        text.strip() == row["answer"] for text, row in zip(texts, rows(), strict=True)
    ) / 5  # fmt: skip
    assert scores["length,none"] == pytest.approx(sum(len(text.strip()) for text in texts) / 5)


def losses(system: System, place: int) -> list[float]:
    """The mean loss of every option, each in a pass of its own."""
    found = []
    for option in OPTIONS:
        one, supervised = batch(system, place, option)
        with torch.no_grad():
            logits = system.model(one).log_softmax(-1)
        assert len(logits) == sum(supervised)
        values = [float(row[token]) for row, token in zip(logits, one.targets.tolist(), strict=True)]
        found.append(-sum(values) / len(values))
    return found


def test_the_option_with_the_smallest_loss_is_chosen(system, tasks):
    found = run(system, tasks, "mini_choice")
    wanted = [losses(system, place) for place in range(5)]
    samples = sorted(found["samples"]["mini_choice"], key=lambda sample: sample["doc_id"])
    for sample, own in zip(samples, wanted, strict=True):
        assert [value for value, _ in sample["filtered_resps"]] == pytest.approx(own, abs=1e-4)
    right = sum(own.index(min(own)) == place for place, own in enumerate(wanted))
    assert found["results"]["mini_choice"]["acc,none"] == right / 5


def pictures(row: dict[str, Any]) -> list[Image.Image]:
    return [row["image"]]


def asked(system: System, settings: Any, *, shown: Any = None, copies: int = 1) -> tuple[MMALMM, list[Any]]:
    """A model that knows a document with a picture, and requests that show it."""
    lm = MMALMM(system, tokens_per_batch=200)
    lm.task_dict = {"t": {"test": rows()}}
    one = Request((rows()[0]["question"] + SUFFIX, settings, shown or pictures, 0, "t", "test"))
    return lm, [one] * copies


def test_answers_do_not_depend_on_how_many_are_shown_at_a_time(system, monkeypatch):
    lm, _ = asked(system, {})
    several = [
        Request((row["question"], {"max_new_tokens": 4 + place % 2}, pictures, place, "t", "test"))
        for place, row in enumerate(rows()[:4])
    ]
    together = lm.generate_until(several)
    monkeypatch.setattr("eval.engines.lmms_eval.TOGETHER", 1)
    assert lm.generate_until(several) == together
    assert lm._held == {}


def test_beams_and_ends_and_sampling(system):
    lm, one = asked(system, {"max_new_tokens": 6, "until": ["\n\n"]})
    (text,) = lm.generate_until(one)
    assert text == generate(system, batch(system, 0)[0], Sampling(6))[0]
    lm, one = asked(system, {"max_new_tokens": 6, "until": [text[2]]})
    assert lm.generate_until(one) == [text[: text.index(text[2])]]
    lm, several = asked(system, {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5}, copies=5)
    assert len(set(lm.generate_until(several))) > 1
    lm, one = asked(system, {"max_new_tokens": 6, "num_beams": 3})
    assert len(lm.generate_until(one)) == 1


def test_what_cannot_be_shown_is_refused(system):
    lm, one = asked(system, {}, shown=lambda doc: ["film.mp4"])
    with pytest.raises(EvalError, match="task 't' shows a str in document 0"):
        lm.generate_until(one)
    lm, one = asked(system, {"repetition_penalty": 1.2})
    with pytest.raises(EvalError, match="'repetition_penalty' is 1.2"):
        lm.generate_until(one)
    lm, one = asked(system, " ")
    with pytest.raises(EvalError, match="an empty answer in document 0"):
        lm.loglikelihood(one)
    lm, one = asked(system, {"max_new_tokens": 0})
    with pytest.raises(ModelError, match="max_new_tokens is 0"):
        lm.generate_until(one)
    with pytest.raises(EvalError, match="task 't' asks in several rounds"):
        lm.generate_until_multi_round(one)


def test_a_long_question_loses_its_beginning_and_keeps_its_picture(system):
    decoder = system.model.decoder
    decoder.config = replace(decoder.config, max_positions=60)
    lm, _ = asked(system, {})
    long = Request(("warm " * 90 + "?", "ice", pictures, 0, "t", "test"))
    loss, greedy = unwrap_generation_output(lm.loglikelihood([long])[0])[0]
    assert loss > 0
    assert greedy is False
    written = Request((long.args[0], {"max_new_tokens": 5}, *long.args[2:]))
    assert len(lm.generate_until([written])) == 1


def test_the_program_finds_the_model_by_its_name(trained_world):
    assert get_model("mma") is MMALMM
    lm = MMALMM.create_from_arg_string(f"adapter={trained_world.run},tokens_per_batch=99", {"device": "cpu"})
    assert lm.tokens_per_batch == 99
    assert str(lm.device) == "cpu"


def test_the_command_runs_a_task_in_one_line(tasks, trained_world, capsys):
    given = ["--tasks", "mini_choice", "--include_path", str(tasks), "--batch_size", "1", "--device", "cpu"]
    assert main(["lmms_eval", "--adapter", str(trained_world.run), *given]) == 0
    assert "|mini_choice|" in capsys.readouterr().out
    assert main(["lmms_eval", "--adapter", str(tasks / "nowhere"), *given]) == 2
    assert capsys.readouterr().err.startswith("error: ")
