"""AI2D as lmms-eval scores it, and as VLMEvalKit does; on chatty answers they are points apart.

Knows texts and letters only.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

from eval.scorers.options import NONE, infer

_LEADING = re.compile(r"\s*([A-Z])\.")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def lmms_filtered(answer: str) -> str:
    """The capital before a period at the start of an answer, or else the whole answer."""
    leading = _LEADING.match(answer)
    return leading[1] if leading else answer


def lmms_match(answer: str, gold: str) -> bool:
    """Whether a filtered answer is the gold letter, whatever its case and ASCII punctuation.

    Quirk: blanks are kept, so " C" and "C ." are wrong.
    """
    return _bare(lmms_filtered(answer)) == _bare(gold)


def _bare(text: str) -> str:
    return text.lower().translate(_PUNCTUATION)


def vlmevalkit_letter(answer: str, choices: Mapping[str, str]) -> str:
    """The option that VLMEvalKit infers without a model, "Z" where it finds none."""
    # Unlike in the circular evaluation the answer is stripped first; that decides how long it is.
    return infer(answer.strip(), choices) or NONE
