"""How long the samples of ScienceQA are: (prompt, answer, picture?) of 512 problems in two prompt formats.

The benchmarks need how long texts are, not the texts, so only numbers are kept (`scienceqa_lengths.json`):
tokens of LLaMA's tokenizer in LaVIN's template, the begin, the end and a picture's six slots included. The
problems are evenly spaced among those of the data that have lecture and explanation, as most of the official
data have. Which of them have a picture is set by rule, so that their share is the official one (48.7 %, Lu et
al., NeurIPS 2022); the texts that were at hand in full belong mostly to problems without. They were made by

    python -m benchmarks.lengths DATA TOKENIZER      data folder, LLaMA's tokenizer.model
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from data.prompts import render
from data.scienceqa import load_problems
from data.template import make_template
from models.tokenizer import load_tokenizer

FILE = Path(__file__).with_name("scienceqa_lengths.json")
FORMATS = ("QCM-ALE", "QCM-A")
COUNT = 512
SLOTS = 6  # class tokens of a picture (LaVIN)
SHARE = 0.487  # of the problems that have a picture


@dataclass(frozen=True)
class Length:
    """One sample: tokens before its answer, tokens of the answer, and whether it has a picture."""

    prompt: int
    answer: int
    picture: bool

    @property
    def tokens(self) -> int:
        """All of the sample's tokens."""
        return self.prompt + self.answer


def lengths(form: str) -> list[Length]:
    """The samples of a prompt format."""
    return [
        Length(prompt, answer, bool(picture))
        for prompt, answer, picture in json.loads(FILE.read_text())[form]
    ]


def count(data: Path, tokenizer: Path) -> dict[str, list[tuple[int, int, int]]]:
    """Counts the samples of a data folder."""
    template = make_template("lavin", load_tokenizer(tokenizer), lambda path: SLOTS)
    whole = [problem for problem in load_problems(data).values() if problem.lecture and problem.solution]
    chosen = [whole[index * len(whole) // COUNT] for index in range(COUNT)]
    found: dict[str, list[tuple[int, int, int]]] = {}
    for form in FORMATS:
        found[form] = []
        for index, problem in enumerate(chosen):
            seen = int((index + 1) * SHARE) > int(index * SHARE)
            tokens = template.tokens(render(problem, form, Path("picture") if seen else None))
            answer = sum(tokens.supervised)
            found[form].append((len(tokens) - answer, answer, int(seen)))
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(count(Path(sys.argv[1]), Path(sys.argv[2])), separators=(",", ":")) + "\n")
