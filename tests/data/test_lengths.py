from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import DataError
from data.lengths import fit
from data.sample import Tokens


def tokens(name: str, prompt: int, image: bool = False) -> Tokens:
    """Begin, prefix, two slots if there is a picture, a prompt of 10, 11, ..., a response of 7, 8."""
    slots = (2, 3) if image else ()
    head = (1, 5, *(0 for _ in slots))
    ids = (*head, *range(10, 10 + prompt), 7, 8)
    supervised = (False,) * (len(ids) - 2) + (True, True)
    images, counts = ((Path("a.png"),), (2,)) if image else ((), ())
    return Tokens(name, ids, supervised, slots, "image" if image else "text", images, counts, head=len(head))


def test_fitting_samples_are_left_alone() -> None:
    samples = [tokens("a", 3), tokens("b", 4)]
    for long in ("error", "truncate", "drop"):
        fitted = fit(samples, 8, long)  # type: ignore[arg-type]
        assert fitted.tokens == tuple(samples)
        assert (fitted.truncated, fitted.dropped, fitted.summary) == ((), (), "")


def test_a_long_sample_is_refused_with_its_id_and_the_choices() -> None:
    message = r"1 of 2 samples exceed 7 tokens, the longest has 8 \(b\); .* long=truncate .* long=drop"
    with pytest.raises(DataError, match=message):
        fit([tokens("a", 3), tokens("b", 4)], 7)


def test_an_error_lists_the_first_few_ids() -> None:
    with pytest.raises(DataError, match=r"7 of 7 samples .*\(0, 1, 2, 3, 4, \.\.\.\)"):
        fit([tokens(str(n), 9) for n in range(7)], 8)


def test_drop_leaves_them_out_and_reports() -> None:
    fitted = fit([tokens("a", 3), tokens("b", 9)], 8, "drop")
    assert [sample.sample_id for sample in fitted.tokens] == ["a"]
    assert fitted.dropped == ("b",)
    assert fitted.summary == "dropped 1 too long samples (b)"


@pytest.mark.parametrize("image", [False, True])
def test_truncate_cuts_the_beginning_of_the_prompt_only(image: bool) -> None:
    long = tokens("b", 9, image)
    fitted = fit([long], len(long) - 4, "truncate")
    (short,) = fitted.tokens
    assert len(short) == len(long) - 4
    assert short.ids[: long.head] == long.ids[: long.head]
    assert short.ids[short.head :] == (14, 15, 16, 17, 18, 7, 8)
    assert (short.slots, short.supervised.count(True)) == (long.slots, 2)
    assert fitted.summary == "truncated 1 too long samples (b)"


def test_truncate_never_cuts_the_answer() -> None:
    assert len(fit([tokens("b", 9)], 5, "truncate").tokens[0]) == 5
    message = "sample b needs 4 tokens without its prompt, which leaves none of 4 for it"
    with pytest.raises(DataError, match=message):
        fit([tokens("b", 9)], 4, "truncate")


def test_slots_in_the_prompt_are_kept_and_move() -> None:
    ids = (1, 10, 11, 0, 0, 12, 13, 7, 8)
    supervised = (False,) * 7 + (True, True)
    long = Tokens("b", ids, supervised, (3, 4), "image", (Path("a.png"),), (2,))
    (short,) = fit([long], 6, "truncate").tokens
    assert (short.ids, short.slots) == ((1, 0, 0, 13, 7, 8), (1, 2))
    assert short.supervised == (False,) * 4 + (True, True)
    with pytest.raises(DataError, match="sample b needs 5 tokens without its prompt"):
        fit([long], 5, "truncate")


def test_answers_of_earlier_turns_are_never_cut() -> None:
    turns = Tokens(
        "b", (1, 10, 11, 7, 12, 13, 8), (False, False, False, True, False, False, True), (), "text"
    )
    assert fit([turns], 6, "truncate").tokens[0].ids == (1, 11, 7, 12, 13, 8)
    with pytest.raises(DataError, match="sample b needs 5 tokens without its prompt"):
        fit([turns], 5, "truncate")


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(DataError, match="long='cut' is unknown; choose error, truncate or drop"):
        fit([tokens("b", 9)], 20, "cut")  # type: ignore[arg-type]
