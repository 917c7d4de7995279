"""Trains the mini world's SentencePiece tokenizer on generated text.

    python -m assets.mini.train_tokenizer assets/mini/decoder/tokenizer.model

Takes ten seconds. Option labels, line breaks and the words of the prompt are pieces of their own.
"""

from __future__ import annotations

import io
import random
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from data.mini.families import FAMILIES, HOURS, TEMPERATURES
from data.mini.language import TABLES
from data.mini.problems import any_text_problem, caption, draw_facts, picture_problem

PIECES = 1_700
SYMBOLS = [
    *("\n", "Context", "Options", "Response"),
    *(f"▁({letter})" for letter in "ABCDE"),
    *(f"▁{reading}" for reading in (*TEMPERATURES, *HOURS)),
]


def sentences(count: int, seed: int) -> Iterator[str]:
    """Lines of problems and captions of the training pool, and every table word on its own."""
    rng = random.Random(seed)
    for _ in range(count):
        family = rng.choice(FAMILIES)
        yield caption(family, draw_facts(family, rng, "training"), rng)
        for problem in (any_text_problem(rng, "training"), picture_problem(family, rng, "training")):
            row = problem.row
            yield f"Question: {row['question']}"
            yield f": {row['hint'] or 'N/A'}"
            yield ": " + " ".join(row["choices"])
            yield f"The answer is {'ABCDE'[row['answer']]}. BECAUSE: {row['lecture']} {row['solution']}"
            yield "Image: N/A"
    for table in TABLES:
        for key, answer in table.pairs.items():
            yield from [f"{key} {answer}"] * 60


def train(path: Path) -> None:
    """Writes the model file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(12_000, seed=5),
        model_writer=model,
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=SYMBOLS,
        required_chars="".join(sorted(set(string.printable) - set(string.whitespace))),
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


if __name__ == "__main__":
    train(Path(sys.argv[1]))
