"""The four public readers of ScienceQA answers, with the quirks of each."""

from __future__ import annotations

import pytest

from eval.scorers.scienceqa import READERS, option


@pytest.mark.parametrize(
    ("text", "llava", "lavin", "gpt3", "lmms"),
    [
        ("B", "B", None, None, "B"),
        ("b", None, None, None, "B"),
        (" B\n", None, None, None, "B"),
        ("F", None, None, None, "F"),
        ("B. cat", "B", None, None, "B"),
        ("B.cat", None, None, None, "B"),
        ("b. cat", None, None, None, None),
        ("B.", None, None, None, "B"),
        ("The answer is B", None, None, None, None),  # some character must follow
        ("The answer is B\n", None, None, None, None),  # and no line break
        ("The answer is B.", "B", "B", "B", None),
        ("The answer is BC", "B", "B", "B", None),
        ("the answer is B.", None, None, None, None),
        ("The answer is A. No: The answer is B.", None, "A", None, None),  # once, or the first
        ("D. dog. The answer is C.", "D", "C", "C", "D"),
        ("", None, None, None, None),
    ],
)
def test_each_reader_has_its_own_rule(
    text: str, llava: str | None, lavin: str | None, gpt3: str | None, lmms: str | None
) -> None:
    found = {name: reader(text) for name, reader in READERS.items()}
    assert found == {"llava": llava, "lavin": lavin, "gpt3": gpt3, "lmms": lmms}


def test_letters_beyond_the_choices_are_no_option() -> None:
    assert option("B", 2) == 1
    assert option("C", 2) is None
    assert option(None, 4) is None
