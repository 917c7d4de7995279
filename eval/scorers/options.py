"""Finding the option that an answer to a multiple-choice question names, without asking a model.

Two rules: VLMEvalKit's, and the one of MMBench in 2023. Knows only texts; which question they belong to
and what the right option is, it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

NONE = "Z"
"""VLMEvalKit's letter for an answer that chooses nothing; never a right one."""

_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_TO_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ENDING = 4  # a letter counts if it first occurs among so many last words

# Quirk: nothing has to follow the letter, so "answer is a cat" names A and "answer is beautiful" B.
_STATED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)


def infer(answer: str, choices: Mapping[str, str]) -> str | None:
    """VLMEvalKit's rule: a letter of the choices, "Z" for a refusal, None where a model would be asked."""
    if _FAILED not in answer and (found := _letter(answer, choices)):
        return found
    text = answer.lower()
    # Compared with the length of the options before they are lowered.
    if len(text) > 2 * sum(len(choice) for choice in choices.values()):
        return None
    return _only_text(text, choices)


def _letter(answer: str, choices: Mapping[str, str]) -> str | None:
    if any(refusal in answer for refusal in _REFUSALS):
        return NONE
    words = answer.translate(_TO_BLANKS).split()
    named = [letter for letter in choices if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _ENDING:
        return named[0]
    if not named and NONE in words:
        return NONE
    # Also reached with several letters, or with one that stands too early.
    stated = _STATED.search(answer)
    if stated and stated[1].upper() in choices:
        return stated[1].upper()
    return None


def _only_text(text: str, choices: Mapping[str, str]) -> str | None:
    """The one option whose text occurs in the answer; quirk: an empty option occurs in every answer."""
    found = [letter for letter, choice in choices.items() if choice.lower() in text]
    return found[0] if len(found) == 1 else None


# Quirk: E is looked for as well, although MMBench has no option of that name.
_LETTERS_2023 = "ABCDE"
_WRAPPINGS_2023 = (
    ("", "."),
    ("", ","),
    ("", ":"),
    ("", ")"),
    ("", ")."),
    ("(", ")"),
    ("(", ")."),
    (":", ""),
    (":", ","),
    (":", "."),
    (":", ")"),
    (":", ")."),
)


def infer_2023(answer: str, choices: Mapping[str, str]) -> str | None:
    """The rule of MMBench in 2023: a letter A to E, or None where a model would be asked."""
    if _FAILED not in answer and (found := _letter_2023(answer.split())):
        return found
    return _only_text(answer.lower(), choices)


def _letter_2023(words: Sequence[str]) -> str | None:
    bare = [letter for letter in _LETTERS_2023 if letter in words]
    # In a longer sentence a lone A may be the article; the other letters are then not read bare either.
    if len(bare) == 1 and not ("A" in words and len(words) > 3):
        return bare[0]
    for before, after in _WRAPPINGS_2023:
        wrapped = [letter for letter in _LETTERS_2023 if before + letter + after in words]
        if len(wrapped) == 1:
            return wrapped[0]
    return None
