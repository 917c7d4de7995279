"""How four public evaluators read an answer to a ScienceQA question; all letters, no randomness.

Two of them replace an answer without a usable letter by a random option. Here such an answer names no
option. Knows neither problems nor files.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from data.scienceqa import LETTERS

# Quirk of all three: some character must follow the letter, and no line break; "The answer is B" at the
# very end names nothing, "The answer is AB." names A.
_STATED = re.compile(r"The answer is ([A-Z]).")
_LLAVA_OPTIONS = "ABCDE"


def llava(text: str) -> str | None:
    """LLaVA's and TinyLLaVA's letter: the bare letter, one before ". ", or a sentence that occurs once."""
    if len(text) == 1 and text in _LLAVA_OPTIONS:
        return text
    if text[:1] in tuple(_LLAVA_OPTIONS) and text[1:3] == ". ":
        return text[0]
    return gpt3(text)


def lavin(text: str) -> str | None:
    """LaVIN's letter: that of the first sentence that states one."""
    hit = _STATED.search(text)
    return hit[1] if hit else None


def gpt3(text: str) -> str | None:
    """The letter of ScienceQA's own GPT-3 code: the sentence must occur exactly once."""
    found = _STATED.findall(text)
    return found[0] if len(found) == 1 else None


def lmms(text: str) -> str | None:
    """The letter that lmms-eval compares with the right one: a lone letter, or one before a period.

    Quirk: a lone letter counts in either case, one before a period only as a capital.
    """
    text = text.strip()
    if len(text) == 1:
        return text.upper() if text.isascii() and text.isalpha() else None
    return text[0] if text[1:2] == "." and text[0] in LETTERS else None


READERS: dict[str, Callable[[str], str | None]] = {
    "llava": llava,
    "lavin": lavin,
    "gpt3": gpt3,
    "lmms": lmms,
}
"""The readers by the name of the evaluator."""


def option(letter: str | None, choices: int) -> int | None:
    """The index of a letter, or None where the question has no such option."""
    index = choices if letter is None else LETTERS.index(letter)
    return index if index < choices else None
