"""Whole tasks of lm-evaluation-harness on our model: in one line, kept answers, conversations, arguments."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

pytest.importorskip("lm_eval", reason="the harness is an extra: pip install lm_eval")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from data.formats import FORMATS
from data.sample import Sample, Turn
from data.template import make_template
from eval.engines.__main__ import main
from eval.engines.lm_eval import MMALM
from eval.engines.opening import parsed
from eval.errors import EvalError
from models.build import BaseSettings, build_base

MINI = BaseSettings()

MMLU = (
    ("Which of these is warm?", "ice", "steam", "snow", "frost", "B"),
    ("Which word names a shape?", "circle", "water", "green", "loud", "A"),
    ("Which of these is a colour?", "seven", "quiet", "blue", "heavy", "C"),
    ("What is frozen water?", "sand", "steam", "smoke", "ice", "D"),
    ("Which number comes after two?", "three", "one", "five", "nine", "A"),
)
TASK = """
task: mini_mmlu
dataset_path: csv
dataset_kwargs:
  column_names: [question, A, B, C, D, answer]
  cache_dir: {root}/cache
  data_files:
    test: {root}/test.csv
    dev: {root}/dev.csv
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
num_fewshot: 2
description: "The following are multiple choice questions (with answers) about small things.\\n\\n"
output_type: multiple_choice
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{A}}}}\\nB. {{{{B}}}}\\nC. {{{{C}}}}\\nD. {{{{D}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder with a task of MMLU's form, and its data."""
    for name, rows in (("test", MMLU), ("dev", MMLU[::-1])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as opened:
            csv.writer(opened).writerows(rows)
    (tmp_path / "mini_mmlu.yaml").write_text(TASK.format(root=tmp_path))
    return tmp_path


def shown(row: Sequence[str]) -> str:
    options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", row[1:5], strict=True))
    return f"{row[0]}\n{options}\nAnswer:"


def likeliest(model: hf.PreTrainedModel, lm: MMALM, row: Sequence[str]) -> str:
    """The letter that transformers finds likeliest behind two solved questions and this one."""
    solved = "".join(f"{shown(one)} {one[5]}\n\n" for one in MMLU[::-1][:2])
    start = "The following are multiple choice questions (with answers) about small things.\n\n"
    ids = lm.tok_encode(start + solved + shown(row))
    letters = [lm.tok_encode(f"{shown(row)} {letter}")[-1] for letter in "ABCD"]
    with torch.no_grad():
        row_of = model(torch.tensor([ids])).logits[0, -1]
    return "ABCD"[int(row_of[letters].argmax())]


def test_mmlu_of_the_mini_base(tasks):
    lm = MMALM(build_base(MINI))
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(
        model=lm, tasks=["mini_mmlu"], task_manager=manager, bootstrap_iters=0, use_cache=None
    )
    model = hf.AutoModelForCausalLM.from_pretrained(MINI.decoder).float().eval()
    answers = [likeliest(model, lm, row) for row in MMLU]
    right = [answer == row[5] for answer, row in zip(answers, MMLU, strict=True)]
    assert found["results"]["mini_mmlu"]["acc,none"] == pytest.approx(sum(right) / len(MMLU))
    assert found["config"]["tokenizer_digest"] == lm.system.tokenizer.digest
    assert [bool(sample["acc"]) for sample in found["samples"]["mini_mmlu"]] == right


def test_answers_that_the_harness_keeps_are_not_asked_again(tasks, tiny_base, monkeypatch):
    lm = MMALM(build_base(tiny_base))
    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def run(**settings: Any) -> float:
        found = simple_evaluate(
            model=lm, tasks=["mini_mmlu"], task_manager=manager, bootstrap_iters=0,
            use_cache=str(tasks / "kept"), **settings,
        )  # fmt: skip
        return found["results"]["mini_mmlu"]["acc,none"]

    first = run(limit=3)
    asked = []
    plain = MMALM._loglikelihood_tokens

    def counted(self: MMALM, requests: Any, **rest: Any) -> Any:
        asked.extend(requests)
        return plain(self, requests, **rest)

    monkeypatch.setattr(MMALM, "_loglikelihood_tokens", counted)
    assert run(limit=3) == first
    assert asked == []
    run()
    assert len(asked) == 4 * 2


@pytest.mark.parametrize("name", ["vicuna_v1", "llama_2", "mistral", "tinyllama_chat", "lavin_chat"])
def test_conversations_have_the_tokens_of_the_adapters_own_format(tiny_base, name):
    system = build_base(tiny_base)
    system.model.adapters.identity = {**system.model.adapters.identity, "template": name}
    lm = MMALM(system)
    template = make_template(name, system.tokenizer, lambda _: 0)
    system_text = {"role": "system", "content": "Be brief."}
    talk = [
        {"role": "user", "content": "Which is warm?"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "Which is cold?"},
    ]
    for messages in (talk, [system_text, *talk], talk[2:]):
        given = "Be brief." if messages[0] is system_text else None
        earlier = (Turn("Which is warm?", "B"),) if len(messages) > 2 else ()
        sample = Sample("x", "Which is cold?", "A", earlier=earlier, system=given)
        text = lm.apply_chat_template(messages)
        assert lm.tok_encode(text) == list(template.tokens(sample, response="").ids)
        begun = lm.apply_chat_template(
            [*messages, {"role": "assistant", "content": "The"}], add_generation_prompt=False
        )
        assert begun == text + FORMATS[name].answer.split("{a}")[0] + "The"
    assert lm.chat_template(True) == name
    assert name in lm.tokenizer_name
    with pytest.raises(EvalError, match="the adapter was trained with"):
        lm.chat_template("chatml")
    with pytest.raises(EvalError, match="must take turns"):
        lm.apply_chat_template([talk[0], talk[2]])


def test_the_model_is_named_by_its_arguments(trained_world, tmp_path):
    text = f"adapter={trained_world.run},tokens_per_batch=99"
    named = MMALM.create_from_arg_string(text, {"device": "cpu"})
    assert named.tokens_per_batch == 99
    assert str(MMALM.create_from_arg_string(f"{text},device=cpu", {"device": "cpu"}).device) == "cpu"
    assert named.system.model.adapters.active == "default"
    base = {"decoder": str(trained_world.decoder), "tower": str(trained_world.tower), "tower_every": "2"}
    alone = MMALM.create_from_arg_obj(base, {"batch_size": 7})
    assert alone.system.model.adapters.active is None
    shutil.copytree(trained_world.decoder, tmp_path / "moved")
    moved = MMALM.create_from_arg_obj({"adapter": trained_world.adapter, "decoder": str(tmp_path / "moved")})
    assert moved.system.settings.decoder == str(tmp_path / "moved")


def test_arguments_may_hold_commas():
    assert parsed('{"grids": "1x2,2x1", "tower_layer": -2}') == {"grids": "1x2,2x1", "tower_layer": -2}
    assert parsed("decoder=a,tower=b=c") == {"decoder": "a", "tower": "b=c"}
    assert parsed("") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no model is named"),
        ("tower=x", "no model is named"),
        ("decoder=x,colour=blue", "model argument 'colour' is unknown"),
        ("decoder", "model argument 'decoder' has no value"),
        ('{"decoder": ', "are not a JSON object"),
        ("decoder=x,tokens_per_batch=many", "tokens_per_batch is 'many'"),
        ("adapter=nowhere", "neither an adapter folder"),
    ],
)
def test_wrong_arguments_are_named(text, message):
    with pytest.raises(EvalError, match=message):
        MMALM.create_from_arg_string(text)


def test_the_command_runs_a_task_in_one_line(tasks, trained_world, capsys, monkeypatch):
    given = ["--tasks", "mini_mmlu", "--include_path", str(tasks), "--num_fewshot", "1", "--device", "cpu"]
    assert main(["lm_eval", "--adapter", str(trained_world.run), *given]) == 0
    assert "|mini_mmlu|" in capsys.readouterr().out
    assert main(["lm_eval", "--adapter", "x", "--model_args", "a=b"]) == 2
    assert "the model is ours" in capsys.readouterr().err
    for wrong, message in (
        (["--adapter", "nowhere"], "neither an adapter folder"),
        ([], "no model is named"),
    ):
        assert main(["lm_eval", *wrong, *given]) == 2
        assert message in capsys.readouterr().err


def test_a_program_that_is_not_installed_is_named(monkeypatch, capsys):
    for engine in ("lm_eval", "lmms_eval"):
        monkeypatch.setitem(sys.modules, f"{engine}.api.model", None)
        monkeypatch.delitem(sys.modules, f"eval.engines.{engine}", raising=False)
        assert main([engine, "--base.decoder", MINI.decoder, "--tasks", "x"]) == 2
        assert f"needs the package {engine}: pip install {engine}" in capsys.readouterr().err
