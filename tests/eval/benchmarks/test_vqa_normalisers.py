"""The normalisers of short answers: every quirk by name, and random texts against a slow plain version."""

from __future__ import annotations

from random import Random

import pytest

from eval.scorers.vqa import CONTRACTIONS, agreement, m4c, m4c_without_tokenizer, vqa_official


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("T-shirt", "t shirt"),  # a sign becomes a blank,
        ("x -ray-s", "x rays"),  # or goes everywhere, once a blank stands beside it,
        ("1,000 a/b", "1000 ab"),  # as all signs do where a comma stands between digits
        ("1,,000", "1 000"),
        ("1.", "1"),
        ("1.5", "1.5"),
        ("5 .5", "5 .5"),
        ("a.b.", "ab"),
        ("None of the ten", "0 of 10"),
        ("an apple", "apple"),
        ("THE", ""),
        ("a-an", ""),
        ("dont", "don't"),
        ("Im", "im"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("somebody'd", "somebodyd"),
        ("ow's'at", "'ow's'at"),
        ("its 5:30 & 50%", "its 5:30 & 50%"),
        ("one's", "one's"),
        ("a\tb\nc", "b c"),
        ("." * 40, "........"),  # 32 at most
        ("", ""),
    ],
)
def test_vqa_official(text: str, expected: str) -> None:
    assert vqa_official(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one's", "1 's"),
        ("red,green", "redgreen"),  # commas go before they could become blanks,
        ("1,000 a/b", "1000 b"),  # and before they could be seen between digits
        ("what ?", "what"),
        ("U.S. flag?", "us flag"),
    ],
)
def test_m4c(text: str, expected: str) -> None:
    assert m4c(text) == expected


def test_m4c_without_its_tokenizer() -> None:
    assert m4c_without_tokenizer("one's") == "one's"
    assert m4c_without_tokenizer("1,,000 a/b") == "1000 ab"  # any number of commas between digits
    assert m4c_without_tokenizer("red,green") == "red green"


def test_contractions() -> None:
    assert len(CONTRACTIONS) == 116 - 2  # of 120, less four keys with capitals and two that change nothing
    for key, full in CONTRACTIONS.items():
        if key != "somebody'd":
            assert key.replace("'", "") == full.replace("'", "") and len(key) < len(full)


def slow(text: str, several_commas: bool) -> str:
    """The rule word by word, letter by letter."""
    text = "".join(" " if letter in "\n\t" else letter for letter in text).strip()
    delete_all = False
    for place, letter in enumerate(text):
        end = place + 1
        while several_commas and letter == "," and end < len(text) and text[end] == ",":
            end += 1
        between = place > 0 and end < len(text)
        if letter == "," and between and text[place - 1].isdecimal() and text[end].isdecimal():
            delete_all = True
    letters = []
    for letter in text:
        if letter not in ';/[]"{}()=+\\_-><@`,?!':
            letters.append(letter)
        elif not delete_all and letter + " " not in text and " " + letter not in text:
            letters.append(" ")
    found, removed = [], 0
    for place, letter in enumerate(letters):
        digit_follows = place + 1 < len(letters) and letters[place + 1].isdecimal()
        if letter == "." and not digit_follows and removed < 32:
            removed += 1
        else:
            found.append(letter)
    numbers = {"none": "0"} | {
        word: str(number)
        for number, word in enumerate(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        )
    }
    words = [numbers.get(word, word) for word in "".join(found).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


PARTS = [
    *";/[]\"{}()=+\\_-><@`,?!.:'#%&*",
    " ",
    "  ",
    "\n",
    "\t",
    ",,",
    "1",
    "23",
    "٣",
    "a",
    "The",
    "one",
    "TEN",
]
PARTS += ["none", "dont", "Youre", "'s", "yall", "'d", "ve", "red", "É", "x.y", "." * 20, "couldn't"]


def test_random_texts_are_normalised_as_by_the_slow_version() -> None:
    random = Random(20)
    for _ in range(4000):
        text = "".join(random.choices(PARTS, k=random.randrange(1, 14)))
        assert vqa_official(text) == slow(text, several_commas=False), repr(text)
        assert m4c_without_tokenizer(text) == slow(text, several_commas=True), repr(text)
        head = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        assert m4c(text) == slow(head, several_commas=True), repr(text)


def test_agreement_is_what_leaving_each_human_out_gives() -> None:
    random = Random(21)
    for _ in range(200):
        humans = random.choices("abc", k=10)
        shares = [
            min(1.0, sum(other == "a" for place, other in enumerate(humans) if place != left_out) / 3)
            for left_out in range(10)
        ]
        assert agreement("a", humans) == pytest.approx(sum(shares) / 10)
