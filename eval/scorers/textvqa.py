"""TextVQA: from a stored prompt back to its question, and the accuracy. Knows no files and no models."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval.errors import EvalError
from eval.scorers.vqa import Soft, agreement, m4c

ANSWERS = 10
_OLD_LAYOUT = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def question_key(prompt: str) -> str:
    """The lower-cased question of a prompt, as the official script finds its annotation again.

    Three layouts are known: the old one in a single line, three lines with the texts found in the picture,
    and two lines without them. Quirk: whether the line of found texts comes first is told without the
    blank behind its colon.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = _OLD_LAYOUT.search(prompt)
        if found is None:
            raise EvalError(f"{prompt[:40]!r} is a prompt in the old layout without a question; ask again")
        return found.group(1).lower()
    if "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise EvalError(f"{prompt[:40]!r} is no prompt of TextVQA in {len(lines)} lines; ask again")


def accuracy(answer: str, humans: Sequence[str]) -> Soft:
    """Agreement with ten human answers; unlike in VQAv2 both sides are always normalised, by M4C."""
    if len(humans) != ANSWERS:
        raise EvalError(f"TextVQA needs {ANSWERS} human answers, got {len(humans)}; fetch the file again")
    read = m4c(answer)
    return Soft(read, agreement(read, [m4c(human) for human in humans]))
