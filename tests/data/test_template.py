from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.pictures import slot_counter
from data.sample import Sample, Tokens
from data.template import Template, make_template
from models.tokenizer import Tokenizer

PROMPT = "Question: Why?\nResponse:"


@pytest.fixture
def template(tokenizer: Tokenizer) -> Template:
    return make_template("lavin", tokenizer, slot_counter(6))


def sample(image: Path | None = None, response: str = "The answer is B.") -> Sample:
    images = () if image is None else (image,)
    return Sample("7", PROMPT, response, images, ("The answer is A.", "The answer is B."), 1)


def test_text_sample_is_prefix_prompt_response(template: Template, tokenizer: Tokenizer) -> None:
    tokens = template.tokens(sample())
    head = [tokenizer.bos_id, *tokenizer.encode("Image: N/A")]
    response = tokenizer.encode("The answer is B.", continues=True)
    assert list(tokens.ids) == [*head, *tokenizer.encode(PROMPT), *response, tokenizer.eos_id]
    assert tokens.slots == ()
    assert (tokens.modality, tokens.head) == ("text", len(head))


def test_image_sample_has_empty_slots_behind_the_prefix(template: Template, tokenizer: Tokenizer) -> None:
    tokens = template.tokens(sample(Path("a.png")))
    prefix = [tokenizer.bos_id, *tokenizer.encode("Image: ")]
    assert tokens.slots == tuple(range(len(prefix), len(prefix) + 6))
    assert list(tokens.ids[: len(prefix) + 6]) == [*prefix, 0, 0, 0, 0, 0, 0]
    assert (tokens.modality, tokens.head) == ("image", len(prefix) + 6)


@pytest.mark.parametrize("image", [None, Path("a.png")])
def test_supervised_is_exactly_response_and_end(
    template: Template, tokenizer: Tokenizer, image: Path | None
) -> None:
    tokens = template.tokens(sample(image))
    targets = [token for token, is_target in zip(tokens.ids, tokens.supervised, strict=True) if is_target]
    assert tokenizer.decode(targets[:-1]) == "The answer is B."
    assert targets[-1] == tokenizer.eos_id
    assert tokens.supervised == (False,) * (len(tokens) - len(targets)) + (True,) * len(targets)


@given(st.text(max_size=30), st.text(min_size=1, max_size=30), st.booleans())
def test_head_prompt_and_response_never_mix(
    tokenizer: Tokenizer, prompt: str, response: str, has_picture: bool
) -> None:
    images = (Path("a.png"),) if has_picture else ()
    tokens = make_template("lavin", tokenizer, slot_counter(6)).tokens(Sample("7", prompt, response, images))
    target = [*tokenizer.encode(response, continues=True), tokenizer.eos_id]
    assert list(tokens.ids[tokens.head :]) == [*tokenizer.encode(prompt), *target]
    assert tokens.supervised == (False,) * (len(tokens) - len(target)) + (True,) * len(target)


def test_empty_response_leaves_out_response_and_end(template: Template) -> None:
    full, prompt = template.tokens(sample()), template.tokens(sample(), response="")
    assert prompt.ids == full.ids[: len(prompt)]
    assert not any(prompt.supervised)


def test_another_response_replaces_the_own(template: Template) -> None:
    other = template.tokens(sample(), response="The answer is A.")
    assert other == template.tokens(sample(response="The answer is A."))


def test_the_response_begins_without_a_space(template: Template, tokenizer: Tokenizer) -> None:
    tokens = template.tokens(sample())
    assert tokenizer.decode(tokens.ids[tokens.head :]).endswith("Response:The answer is B.")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"supervised": (False,)}, "2 ids but 1 supervised marks"),
        ({"supervised": (True, False)}, "first token is supervised"),
        ({"slots": (1,)}, r"1 image slots, counted as \(\), with 0 pictures"),
        ({"images": (Path("a.png"),)}, r"0 image slots, counted as \(\), with 1 pictures"),
        ({"images": (Path("a.png"),), "slot_counts": (2,), "slots": (1,)}, r"counted as \(2,\)"),
        (
            {"images": (Path("a.png"),), "slot_counts": (1,), "slots": (2,)},
            r"\(2,\) lie outside its 2 tokens",
        ),
    ],
)
def test_inconsistent_tokens_are_refused(fields: dict[str, object], message: str) -> None:
    good = Tokens("7", (1, 5), (False, True), slots=(), modality="text")
    with pytest.raises(ValueError, match=f"sample 7: .*{message}"):
        replace(good, **fields)  # type: ignore[arg-type]
