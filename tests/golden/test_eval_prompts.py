"""Conversations as the public code writes them, system sentence and all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from data.pictures import slot_counter
from data.sample import Sample, Turn
from data.template import make_template
from tests.golden.cases import GOLDEN, Case, cases, lines_with

LINES = lines_with("prompts", "conv_mode", "full_sha256")
READ = (
    {"conv_mode", "full_sha256"},  # here
    {"problem", "prompt_format", "use_caption"},  # test_prompts.py
    {"user_message"},  # test_eval_judged.py
)


class Names:
    """A tokenizer that knows every special token; texts are compared, not ids."""

    bos_id, eos_id = 1, 2

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return [len(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    def special(self, text: str) -> int:
        return 3


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.skipif(not LINES, reason=f"no golden conversations below {GOLDEN} (MMA_GOLDEN)")
@pytest.mark.parametrize("line", [line for _, line in LINES], ids=[name for name, _ in LINES])
def test_a_conversation_is_written_as_the_public_code_writes_it(line: dict[str, Any]) -> None:
    template = make_template(line["conv_mode"], Names(), slot_counter(3))
    earlier = tuple(Turn(question, answer) for question, answer in line["history"])
    text = template.text(Sample(line["id"], line["user"], "", earlier=earlier))
    assert text.endswith(line["after_system"])
    system = text[: len(text) - len(line["after_system"])]
    assert digest(system) == line["system_sha256"]
    assert (digest(text), len(text)) == (line["full_sha256"], line["full_len"])


@pytest.mark.parametrize("case", cases("prompts") or [None], ids=str)
def test_no_line_of_prompts_is_left_out(case: Case | None) -> None:
    if case is None:
        pytest.skip(f"no golden prompts below {GOLDEN} (MMA_GOLDEN)")
    lines = case.lines()
    assert lines
    for line in lines:
        assert any(columns <= line.keys() for columns in READ), sorted(line)
