"""Training documents of the mini decoder: problems, captions and drills as token ids with weights.

Everything a picture can show also occurs here in words: in the hint, in the place where the picture
will go, and as a mixture of word embeddings in that place (a `Mixture`), because that is the shape in
which a projector hands over what it sees. Only combinations of the training pool are used.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sentencepiece import SentencePieceProcessor

from data.mini.families import FAMILIES, Facts, Family
from data.mini.language import TABLES
from data.mini.problems import (
    Pool,
    any_text_problem,
    ask_about,
    caption,
    draw_facts,
    hint_problem,
    picture_problem,
    word_problem,
)

LETTERS = "ABCDE"
IMAGE_SLOTS = 6
Phase = Literal["drill", "open", "all"]
OPTION_WORDS = sorted(
    {word for table in TABLES for word in table.pairs.values()}
    | {value for family in FAMILIES for values in family.attributes.values() for value in values}
)


@dataclass
class Mixture:
    """One position whose embedding is a weighted sum of the embeddings of words."""

    position: int
    words: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Letter:
    """An answer letter: where it stands, among how many, and the first piece of the answer in words."""

    position: int
    options: int
    word: int


@dataclass
class Document:
    """Token ids, the weight of each token as a target, and the places of answer letters."""

    kind: str = "problem"
    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    mixtures: list[Mixture] = field(default_factory=list)

    def add(self, ids: list[int], weight: float) -> None:
        """Appends tokens whose prediction counts with this weight."""
        self.ids += ids
        self.weights += [weight] * len(ids)


class Writer:
    """Writes random documents with a tokenizer and one random generator."""

    TEXT, RESPONSE, LETTER = 0.1, 0.5, 3.0

    def __init__(self, tokenizer: SentencePieceProcessor, rng: random.Random) -> None:
        self.tokenizer, self.rng = tokenizer, rng
        self.opened = 0.0  # share of problems without options, answered in words
        everything = [
            (self.problem, 2), (self.captioned, 2), (self.mixed, 3),
            (self.several, 2), (self.drill, 1), (self.plain, 1),
        ]  # fmt: skip
        self.kinds = {"drill": [(self.drill, 1)], "open": everything, "all": everything}

    def document(self, phase: Phase = "all") -> Document:
        """A document of a random kind that the phase of training has."""
        kinds, shares = zip(*self.kinds[phase], strict=True)
        self.opened = {"drill": 0.0, "open": 1.0, "all": 0.25}[phase]
        (write,) = self.rng.choices(kinds, shares)
        return write()

    def problem(self, pool: Pool = "training", kind: str = "any") -> Document:
        """A text-only problem in the format of the data set."""
        if kind == "hint":
            row = hint_problem(self.rng.choice(FAMILIES), self.rng, pool).row
        elif kind == "words":
            row = word_problem(self.rng.choice(TABLES), self.rng, pool).row
        else:
            row = any_text_problem(self.rng, pool).row
        document = self._start("Image: N/A")
        self._question(document, row, opened=self._opened(pool))
        return self._end(document)

    def captioned(self, pool: Pool = "training") -> Document:
        """A picture problem with a caption or keywords where the picture will go."""
        family, facts, row = self._pictured(pool)
        document = self._start("Image: ")
        if self.rng.random() < 0.5:
            words = self.tokenizer.encode(caption(family, facts, self.rng))
        else:
            words = self._keywords(family, facts)
        document.add(words, self.TEXT)
        self._question(document, row, opened=self._opened(pool))
        return self._end(document)

    def mixed(self, pool: Pool = "training") -> Document:
        """A picture problem with mixtures of keyword embeddings where the picture will go."""
        family, facts, row = self._pictured(pool)
        document = self._start("Image: ")
        words = self._keywords(family, facts)
        first = len(document.ids)
        document.add([words[0]] * IMAGE_SLOTS, 0.0)
        clear = self.rng.choice((0.3, 1.0, 3.0))
        for slot in range(IMAGE_SLOTS):
            weights = [self.rng.random() ** clear for _ in words]
            scale = self.rng.uniform(0.5, 1.5) / max(sum(weight**2 for weight in weights) ** 0.5, 1e-3)
            document.mixtures.append(Mixture(first + slot, words, [scale * w for w in weights]))
        self._question(document, row, opened=self._opened(pool))
        return self._end(document)

    def several(self) -> Document:
        """Several problems about the same facts, or about word tables, one after the other."""
        rng = self.rng
        document = self._start("Image: N/A")
        if rng.random() < 0.5:
            for _ in range(2):
                row = word_problem(rng.choice(TABLES), rng, "training").row
                self._question(document, {**row, "hint": None}, self._opened("training"))
            return self._end(document)
        family = rng.choice(FAMILIES)
        facts = draw_facts(family, rng, "training")
        document.add(self.tokenizer.encode(caption(family, facts, rng)), self.TEXT)
        for _ in range(2):
            question, options, index, _ = ask_about(family, facts, rng)
            row = {"question": question, "choices": options, "answer": index, "hint": None}
            self._question(document, row, self._opened("training"))
        return self._end(document)

    def drill(self) -> Document:
        """Options, then each of them with its letter: looking an option up and nothing else."""
        rng = self.rng
        words = rng.sample(OPTION_WORDS, 5)
        document = self._start("Image: N/A")
        document.kind = "drill"
        options = " ".join(f"({LETTERS[i]}) {word}" for i, word in enumerate(words))
        document.add(self.tokenizer.encode(f"Options: {options}"), self.TEXT)
        for _ in range(10):
            index = rng.randrange(len(words))
            document.add(self.tokenizer.encode(f"{words[index]} is"), self.TEXT)
            self._letter(document, index, words)
        return self._end(document)

    def plain(self) -> Document:
        """Statements from word tables, and a caption, as running text."""
        rng = self.rng
        document = self._start("Image: N/A")
        for _ in range(3):
            table = rng.choice(TABLES)
            key = rng.choice(sorted(table.pairs))
            text = rng.choice(table.statements).format(key, table.pairs[key])
            document.add(self.tokenizer.encode(text), self.RESPONSE)
        family = rng.choice(FAMILIES)
        facts = draw_facts(family, rng, "training")
        document.add(self.tokenizer.encode(caption(family, facts, rng)), self.TEXT)
        return self._end(document)

    def _pictured(self, pool: Pool) -> tuple[Family, Facts, dict[str, Any]]:
        """A picture problem whose facts are told in words: those have no paper."""
        row = (problem := picture_problem(self.rng.choice(FAMILIES), self.rng, pool)).row
        assert problem.family is not None
        facts = draw_facts(problem.family, self.rng, pool)
        question, options, index, _ = ask_about(problem.family, facts, self.rng)
        told = {"question": question, "choices": options, "answer": index}
        return problem.family, facts, {**row, **told, "solution": caption(problem.family, facts, self.rng)}

    def _opened(self, pool: Pool) -> bool:
        return pool == "training" and self.rng.random() < self.opened

    def _keywords(self, family: Family, facts: Facts) -> list[int]:
        words = [*facts.values(), family.noun.split()[-1]]
        self.rng.shuffle(words)
        return [piece for word in words for piece in self.tokenizer.encode(word)]

    def _start(self, prefix: str) -> Document:
        document = Document()
        document.add([self.tokenizer.bos_id(), *self.tokenizer.encode(prefix)], 0.0)
        return document

    def _end(self, document: Document) -> Document:
        document.add([self.tokenizer.eos_id()], self.RESPONSE)
        return document

    def _question(self, document: Document, row: dict, opened: bool = False) -> None:
        """The problem and its answer: a letter, or the answer's words when no options are shown."""
        options = " ".join(f"({LETTERS[i]}) {text}" for i, text in enumerate(row["choices"]))
        lines = [f"Question: {row['question']}"]
        if row["hint"] is not None:
            lines.append(f"Context: {row['hint'] or 'N/A'}")
        if not opened:
            lines.append(f"Options: {options}")
        lines.append("Response:")
        document.add(self.tokenizer.encode("\n".join(lines)), self.TEXT)
        document.add(self._continued("The answer is"), self.TEXT)
        if opened:
            document.add(self.tokenizer.encode(row["choices"][row["answer"]]), self.LETTER)
        else:
            self._letter(document, row["answer"], row["choices"])
        if row["hint"] is not None and self.rng.random() < 0.25:
            lecture = f"{row['lecture']} " if self.rng.random() < 0.5 else ""
            reasons = self.tokenizer.encode(f"BECAUSE: {lecture}{row['solution']}")
            document.add(reasons, self.TEXT)

    def _letter(self, document: Document, index: int, options: Sequence[str]) -> None:
        word = self.tokenizer.encode(options[index])[0]
        document.letters.append(Letter(len(document.ids), len(options), word))
        document.add(self.tokenizer.encode(LETTERS[index]), self.LETTER)
        document.add(self._continued("."), self.RESPONSE)

    def _continued(self, text: str) -> list[int]:
        """Ids of text that goes on without a space before it."""
        line_break = self.tokenizer.encode("\n")
        return self.tokenizer.encode("\n" + text)[len(line_break) :]
