"""The SentencePiece tokenizer: text survives it, also in pieces; what is no tokenizer is refused."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ModelError
from models.tokenizer import SentencePieceTokenizer

TOKENIZER = SentencePieceTokenizer(
    Path(__file__).parent.parent.parent / "assets/mini/decoder/tokenizer.model"
)
# SentencePiece writes a space as U+2581, so a text with that character itself comes back with a space.
characters = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="\u2581")
texts = st.text(characters, max_size=30) | st.sampled_from(
    ["The answer is A.", "Question: What?\nContext: N/A", " two  spaces ", "a\n\n b"]
)


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= i < TOKENIZER.vocab_size for i in ids)


@settings(max_examples=200, deadline=None)
@given(first=texts.filter(bool), second=texts)
def test_text_that_goes_on_gets_no_space(first, second):
    joined = TOKENIZER.encode(first) + TOKENIZER.encode(second, continues=True)
    assert TOKENIZER.decode(joined) == first + second


def test_a_space_is_put_before_a_beginning_only():
    assert TOKENIZER.encode("A", continues=True) != TOKENIZER.encode("A")
    assert TOKENIZER.encode(" A", continues=True) == TOKENIZER.encode("A")
    assert TOKENIZER.encode("", continues=True) == TOKENIZER.encode("") == []


def test_begin_and_end_leave_no_trace():
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode("The answer is B."), TOKENIZER.eos_id]
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id) == (1, 2)
    assert TOKENIZER.decode(ids) == "The answer is B."
    assert not {TOKENIZER.bos_id, TOKENIZER.eos_id} & set(TOKENIZER.encode("<s></s>"))


def test_the_digest_is_that_of_the_file():
    assert TOKENIZER.digest == hashlib.sha256(TOKENIZER.path.read_bytes()).hexdigest()


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file .*tokenizer\.model; name a SentencePiece"):
        SentencePieceTokenizer(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("content", [b"", b'{"version": "1.0"}', TOKENIZER.path.read_bytes()[:1000]])
def test_a_file_that_is_no_model(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.model is not a SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "tokenizer.model")


def test_a_model_without_begin_and_end(tmp_path):
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"] * 20),
        model_writer=made,
        vocab_size=8,
        bos_id=-1,
        eos_id=-1,
        minloglevel=9,
        num_threads=1,
    )
    (tmp_path / "tokenizer.model").write_bytes(made.getvalue())
    with pytest.raises(ModelError, match="lacks the begin or end piece"):
        SentencePieceTokenizer(tmp_path / "tokenizer.model")
