"""The VQA family: two relatives that normalise short answers, and the soft accuracy over ten human answers.

VQAv2, TextVQA and VizWiz share them. Knows no files and no models; a quirk of the official tools that
changes scores is kept and named where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA = re.compile(r"\d,\d")  # of the VQA tool
_COMMAS = re.compile(r"\d,+\d")  # of M4C: any number of commas between two digits
# Quirk: the tools mean to keep the period of "1.", but their look-behind is mistyped and never holds.
_PERIOD = re.compile(r"\.(?!\d)")
# Quirk: a flag of the expression (UNICODE, which is 32) stands where the count of replacements belongs.
_PERIODS = 32

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})

_PLAIN = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've
shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd
there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've
when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all
you'd you'll you're you've
"""
_WITH_HAVE = """
couldn't hadn't he'd it'd mightn't she'd shouldn't somebody'd someone'd something'd there'd they'd we'd who'd
wouldn't you'd
"""


def _contractions() -> dict[str, str]:
    """The table of both tools, from a spelling that lacks apostrophes to the full one.

    Quirk: four keys of theirs (of I'm, I've and I'd've) hold a capital and meet lower-cased words only, so
    they change nothing and are left out; "let's" and "she's" stand there for themselves.
    """
    table = {full.replace("'", ""): full for full in _PLAIN.split()}
    for stem in _WITH_HAVE.split():  # either apostrophe may be missing, not both
        table[stem.replace("'", "") + "'ve"] = table[stem + "ve"] = stem + "'ve"
    table |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    table |= dict.fromkeys(("yall'll", "y'allll"), "y'all'll")
    table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    table["somebody'd"] = "somebodyd"  # quirk: the one entry that loses its apostrophe
    return table


CONTRACTIONS = _contractions()


def one_line(text: str) -> str:
    """Line breaks and tabs as blanks, and no blanks around."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str, commas: re.Pattern[str] = _COMMA) -> str:
    """Each sign deleted, or made a blank; then periods deleted, but for those before a digit.

    Quirk: one blank beside one occurrence deletes every occurrence of that sign; one comma between digits
    deletes every occurrence of every sign. Both look at the text as it came.
    """
    delete_all = commas.search(text) is not None
    result = text
    for sign in _SIGNS:
        if sign in text:
            delete = delete_all or f"{sign} " in text or f" {sign}" in text
            result = result.replace(sign, "" if delete else " ")
    return _PERIOD.sub("", result, count=_PERIODS)


def plain_words(text: str) -> str:
    """Lower case, numbers up to ten as digits, no articles, contractions with their apostrophes."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


# The human answers of a set are few different texts, so remembering them saves most of the work.
@lru_cache(maxsize=2**17)
def vqa_official(text: str) -> str:
    """The normaliser of the official VQA tool."""
    return plain_words(without_punctuation(one_line(text)))


@lru_cache(maxsize=2**17)
def m4c(text: str) -> str:
    """The normaliser of M4C, which LLaVA applies before it uploads, and for TextVQA.

    Quirk: commas and question marks go first, so they never become blanks, and "man's" is two words.
    """
    return m4c_without_tokenizer(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


@lru_cache(maxsize=2**17)
def m4c_without_tokenizer(text: str) -> str:
    """M4C's normaliser as lmms-eval runs it on VQAv2: signs are not touched beforehand."""
    return plain_words(without_punctuation(one_line(text), _COMMAS))


class Soft(NamedTuple):
    """What an answer was read as, and its share of agreement with the human ones."""

    read: str
    accuracy: float


def agreement(answer: str, humans: Sequence[str]) -> float:
    """Mean over all ways to leave one human out of min(1, equal answers / 3); texts are compared as given."""
    equal = humans.count(answer)
    return sum(min(1.0, (equal - (human == answer)) / 3) for human in humans) / len(humans)


def official(answer: str, humans: Sequence[str]) -> Soft:
    """The official VQA accuracy.

    Quirk: where all human answers are the same text, neither side is normalised, so "Yes" is wrong there
    against "yes".
    """
    read, lines = one_line(answer), [one_line(human) for human in humans]
    if len(set(lines)) > 1:
        read, lines = vqa_official(read), [vqa_official(line) for line in lines]
    return Soft(read, agreement(read, lines))


def lmms(answer: str, humans: Sequence[str]) -> Soft:
    """VQAv2's accuracy as lmms-eval computes it: both sides are always normalised."""
    read = m4c_without_tokenizer(answer)
    return Soft(read, agreement(read, [m4c_without_tokenizer(human) for human in humans]))
