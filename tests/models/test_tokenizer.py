"""Tokenizers of three kinds: text survives, looks make no special token, wrong files are refused."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from models.errors import ModelError
from models.tokenizer import JsonTokenizer, RanksTokenizer, SentencePieceTokenizer, load_tokenizer

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


QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level(folder: Path, specials: tuple[str, ...], begin: str | None = None, config: dict | None = None):
    """A byte-level tokenizer.json with special tokens behind its vocabulary."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        ["the answer is a small red dog ! USER: ASSISTANT:"] * 9,
        trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    made.add_special_tokens(list(specials))
    if begin:
        made.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, made.token_to_id(begin))]
        )
    made.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return made


def ranks(folder: Path) -> Path:
    """Ranks of all bytes and one word, in Meta's file format; id 0 is "!", as in LLaMA-3."""
    symbols = [b"!"] + [bytes([i]) for i in range(256) if i != ord("!")] + [b"th", b"the"]
    lines = [base64.b64encode(symbol) + b" %d\n" % rank for rank, symbol in enumerate(symbols)]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder / "tokenizer.model"


def test_the_kind_is_told_by_the_content(tmp_path):
    assert isinstance(load_tokenizer(TOKENIZER.path), SentencePieceTokenizer)
    assert isinstance(load_tokenizer(TOKENIZER.path.parent), SentencePieceTokenizer)
    byte_level(tmp_path, QWEN)
    assert isinstance(load_tokenizer(tmp_path), JsonTokenizer)
    assert isinstance(load_tokenizer(ranks(tmp_path)), RanksTokenizer)


@settings(max_examples=50, deadline=None)
@given(first=st.text(max_size=20), second=st.text(max_size=20) | st.sampled_from(QWEN))
def test_bytes_survive(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("t")
    byte_level(folder, QWEN)
    for tokenizer in (load_tokenizer(folder), RanksTokenizer(ranks(folder))):
        ids = tokenizer.encode(first) + tokenizer.encode(second, continues=True)
        assert tokenizer.decode(ids) == first + second
        assert max(ids, default=0) < tokenizer.vocab_size


def test_json_equals_the_library_where_no_special_token_is_written(tmp_path):
    made = byte_level(tmp_path, QWEN)
    text = "the dog!\n\n is  red"
    assert load_tokenizer(tmp_path).encode(text) == made.encode(text).ids


@pytest.mark.parametrize("typed", [*QWEN, "<|eot_id|>", "<|begin_of_text|>"])
def test_a_typed_special_token_stays_text(tmp_path, typed):
    byte_level(tmp_path, QWEN)
    for tokenizer in (load_tokenizer(tmp_path), RanksTokenizer(ranks(tmp_path))):
        assert len(tokenizer.encode(typed)) > 1
        assert tokenizer.decode(tokenizer.encode(typed)) == typed


def test_special_tokens_by_name(tmp_path):
    made = byte_level(tmp_path, QWEN)
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.special(name) for name in QWEN] == [made.token_to_id(name) for name in QWEN]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, made.token_to_id("<|endoftext|>"))
    assert tokenizer.vocab_size == made.get_vocab_size()
    assert tokenizer.decode([tokenizer.special("<|im_end|>"), *tokenizer.encode("a")]) == "a"
    assert (TOKENIZER.special("<s>"), TOKENIZER.special("</s>")) == (1, 2)


def test_begin_by_the_file_and_by_its_config(tmp_path):
    names = ("<s>", "</s>")
    byte_level(tmp_path, names, begin="<s>")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (tokenizer.special("<s>"), tokenizer.special("</s>"))
    byte_level(tmp_path, names, "<s>", {"add_bos_token": False, "eos_token": {"content": "<s>"}})
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, tokenizer.special("<s>"))
    byte_level(tmp_path, names, None, {"add_bos_token": True, "bos_token": "<s>"})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_id == tokenizer.special("<s>")


def test_llama_3_special_tokens(tmp_path):
    tokenizer = RanksTokenizer(ranks(tmp_path))
    first = tokenizer.bos_id
    names = ("<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_3|>")
    assert [tokenizer.special(name) - first for name in names] == [1, 2, 5]
    names = ("<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>")
    assert [tokenizer.special(name) - first for name in names] == [6, 7, 8, 9]
    assert tokenizer.special("<|reserved_special_token_250|>") - first == 255
    assert (first, tokenizer.vocab_size) == (258, 258 + 256)
    assert tokenizer.encode("!") == [0] and tokenizer.decode([first, 0, tokenizer.eos_id]) == "!"


@pytest.mark.parametrize("kind", ["sentencepiece", "json", "ranks"])
def test_an_unknown_special_token(tmp_path, kind):
    byte_level(tmp_path, QWEN)
    made = {
        "sentencepiece": TOKENIZER,
        "json": load_tokenizer(tmp_path),
        "ranks": RanksTokenizer(ranks(tmp_path)),
    }
    with pytest.raises(ModelError, match=r"has no special token '<\|none\|>'; choose another template"):
        made[kind].special("<|none|>")


def test_wrong_files(tmp_path):
    with pytest.raises(ModelError, match=r"has none of tokenizer\.model, tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="there is no file .*absent; name a tokenizer.model or"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelError, match=r"is not a tokenizer\.json; fetch it again"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n!!\n")
    with pytest.raises(ModelError, match="is not a file of tiktoken ranks"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")
    with pytest.raises(ModelError, match="lacks ranks or bytes"):
        load_tokenizer(tmp_path)


def test_wrong_configs(tmp_path):
    byte_level(tmp_path, ("<|x|>",))
    with pytest.raises(ModelError, match="has no end token; name its eos_token"):
        load_tokenizer(tmp_path)
    for content, message in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(ModelError, match=f"tokenizer_config.json {message}; fetch it again"):
            load_tokenizer(tmp_path)
