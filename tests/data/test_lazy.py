from __future__ import annotations

from collections.abc import Sequence

import pytest

from data import lazy
from data.epochs import micro_batches
from data.errors import DataError
from data.lazy import TokenSource, tokenise
from data.lengths import fit
from data.pictures import slot_counter
from data.sample import Sample
from data.template import Template, make_template
from models.tokenizer import Tokenizer

SAMPLES = [Sample("a", "one", "yes"), Sample("b", "one " * 40, "yes"), Sample("c", "two", "no")]


@pytest.fixture
def template(tokenizer: Tokenizer) -> Template:
    return make_template("lavin", tokenizer, slot_counter(2))


@pytest.mark.parametrize("long", ["truncate", "drop"])
def test_lazy_tokens_are_those_made_at_once(template: Template, long: str) -> None:
    source = TokenSource(SAMPLES, template, 30, long)  # type: ignore[arg-type]
    at_once = fit([template.tokens(sample) for sample in SAMPLES], 30, long).tokens  # type: ignore[arg-type]
    assert tuple(tokens for tokens in source if tokens is not None) == at_once
    assert (source[1] is None) == (long == "drop")
    assert source[-1] == source[2] and len(source) == 3
    with pytest.raises(IndexError):
        source[3]


def test_a_long_sample_is_an_error_when_its_turn_comes(template: Template) -> None:
    source = TokenSource(SAMPLES, template, 30, "error")
    assert source[0] is not None
    with pytest.raises(DataError, match=r"samples exceed 30 tokens.*\(b\)"):
        source[1]


def test_a_step_goes_on_without_a_sample_that_was_left_out(template: Template) -> None:
    groups = micro_batches(TokenSource(SAMPLES, template, 30, "drop"), [2, 1, 0], 60)
    assert sorted(tokens.sample_id for group in groups for tokens in group) == ["a", "c"]
    assert micro_batches(TokenSource(SAMPLES, template, 30, "drop"), [1], 60) == []


def test_many_samples_are_read_when_they_are_asked_for(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy, "AT_ONCE", 3)
    read: list[int] = []

    class Recorded(Sequence[Sample]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
            read.append(index)
            return SAMPLES[index]

    tokens, summary = tokenise(Recorded(), template, 30, "truncate")
    assert (read, summary) == ([], "")
    assert tokens[2] == tokens[2] and read == [2]


def test_few_samples_are_fitted_at_once(template: Template) -> None:
    tokens, summary = tokenise(SAMPLES, template, 30, "drop")
    assert (len(tokens), summary) == (2, "dropped 1 too long samples (b)")
