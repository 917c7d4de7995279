"""A question without what is put around it, so that two prompts of the same question can be compared.

Taken away are case, blanks, punctuation, marks of pictures, letters of options, labels such as "Question:",
the context, and sentences that say how to answer. Knows only texts: no files, no benchmarks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.sample import IMAGE

LAST_LINES = 6  # a question behind a context without a label is looked for in so many last lines
TRIVIAL = 3  # a question of so few words says nothing without its picture

_HOW_TO_ANSWER = re.compile(
    r"answer the question using (?:a single word or phrase|a single word|one word)\b"
    r"|answer with the option['’]?s letter from the given choices(?: directly)?"
    r"|answer with the letter of the (?:right|correct) option"
    r"|(?:please )?answer (?:the question )?(?:with )?yes or no\b"
    r"|please answer the question directly"
    r"|when the provided information is insufficient, respond with ['‘]unanswerable['’]",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(question|instruction|context|hint|because|reference ocr tokens?|options|choices|response|answer)\s*:",
    re.IGNORECASE,
)
_SAID = ("question", "instruction")  # behind these labels stands what is asked; "Instruction:" holds all
_LISTS = ("options", "choices")
_LETTERED = re.compile(r"\(?([A-Z])[.):]\s*(.*)")
_IN_LINE = re.compile(r"\(([A-Z])\)")
# What numbers and formulas are made of stays: signs before a digit, and points within a number.
_APART = re.compile(r"(?:[^\w+*/=<>^%.-]|_|-(?!\s*\d)|(?<!\d)\.|\.(?!\d))+")
_APOSTROPHES = str.maketrans(dict.fromkeys("'’‘`"))


@dataclass(frozen=True)
class Bare:
    """What is asked: its lines, and what its options say without an order; all of it plain.

    Args:
        labelled: Whether the lines are known to be the question and nothing else.
    """

    lines: tuple[str, ...]
    options: tuple[str, ...] = ()
    labelled: bool = False

    @property
    def whole(self) -> str:
        """One text that is the same for the same question."""
        return _key(self.lines, self.options)

    @property
    def possible(self) -> Iterator[str]:
        """The texts it may equal: some of its last lines where a context may stand before the question."""
        least = len(self.lines) if self.labelled else 1
        for count in range(least, max(least, min(len(self.lines), LAST_LINES)) + 1):
            yield _key(self.lines[-count:], self.options)
        if not self.labelled and len(self.lines) > LAST_LINES:
            yield self.whole

    @property
    def trivial(self) -> bool:
        """Whether it is too short to be known by its text alone."""
        return not self.options and sum(len(line.split()) for line in self.lines) <= TRIVIAL


def plain(text: str) -> str:
    """A text in small letters, its words one blank apart, without punctuation."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(_APART.sub(" ", text.casefold().translate(_APOSTROPHES)).split())


def with_options(question: str, options: Sequence[str]) -> Bare:
    """A question that is known without its prompt."""
    lines = bare(question).lines
    return Bare(lines, tuple(sorted(map(plain, options))), labelled=True)


def bare(prompt: str) -> Bare:
    """What a prompt asks."""
    if IMAGE in prompt:
        prompt = prompt.replace(IMAGE, " ")
    if "nswer" in prompt or "NSWER" in prompt:
        prompt = _HOW_TO_ANSWER.sub(" ", prompt)
    asked: list[str] = []
    unlabelled: list[str] = []
    section = ""
    lines = [stripped for line in prompt.split("\n") if (stripped := line.strip())]
    lines, options = _without_options(lines)
    for line in lines:
        rest = line
        while found := _LABEL.match(rest):  # "Instruction: Question: ..." has two
            section, rest = found[1].lower(), rest[found.end() :].strip()
            if section not in _SAID:
                rest = ""  # the rest of its line alone: further lines may be the question
        if rest:
            (asked if section == "question" else unlabelled).append(rest)
    found_lines = tuple(text for line in asked or unlabelled if (text := plain(line)))
    return Bare(found_lines, tuple(sorted(map(plain, options))), labelled=bool(asked))


def _without_options(lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines before the last list of options, and what the options say."""
    for place in range(len(lines) - 1, -1, -1):
        line = lines[place]
        label = _LABEL.match(line)
        if label and label[1].lower() in _LISTS and line[label.end() :].strip():
            line = line[label.end() :].strip()
            if options := _in_line(line):
                return [*lines[:place], *lines[place + 1 :]], options
        elif line.startswith(("A", "(A")) and (options := _in_lines(lines[place:])):
            return lines[:place], options
        elif "(A)" in line and "(B)" in line and (options := _in_line(line[line.index("(A)") :])):
            return [*lines[:place], line[: line.index("(A)")]], options
    return lines, []


def _in_lines(lines: Sequence[str]) -> list[str]:
    """Options in lines of their own, from A on; none where there are less than two."""
    found: list[str] = []
    for line in lines:
        match = _LETTERED.fullmatch(line)
        if match is None or ord(match[1]) - ord("A") != len(found):
            break
        found.append(match[2])
    return found if len(found) > 1 else []


def _in_line(line: str) -> list[str]:
    """The options of "(A) one (B) two"; none where there are less than two."""
    starts: list[tuple[int, int]] = []
    for match in _IN_LINE.finditer(line):
        if ord(match[1]) - ord("A") == len(starts):
            starts.append(match.span())
    ends = [start for start, _ in starts[1:]] + [len(line)]
    found = [line[start:end] for (_, start), end in zip(starts, ends, strict=True)]
    return found if len(found) > 1 else []


def _key(lines: Sequence[str], options: Sequence[str]) -> str:
    return "\x1f".join((" ".join(lines), *options))
