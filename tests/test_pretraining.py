"""The mini decoder's start and documents: heads that do what they say, answers that are right."""

from __future__ import annotations

import random

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from assets.mini.documents import LETTERS, Writer
from assets.mini.initialise import Lookups, fit_lookup
from assets.mini.pretrain_decoder import embed, hidden_states, new_decoder, rate_of, step_loss
from models.attention import PackedAttention

TOKENIZER = "assets/mini/decoder/tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=TOKENIZER)


def test_the_first_heads_look_at_the_previous_token(tokenizer):
    torch.manual_seed(0)
    decoder = new_decoder(tokenizer)
    seen = {}

    def attend(layer, q, k, v):
        scores = torch.einsum("nhe,mhe->hnm", q, k) / q.shape[2] ** 0.5
        future = torch.ones(len(q), len(q)).triu(1).bool()
        seen[layer] = scores.masked_fill(future, -torch.inf).softmax(-1)
        return torch.einsum("hnm,mhe->nhe", seen[layer], v)

    ids = torch.randint(3, 1700, (12,))
    with torch.no_grad():
        decoder(decoder.embed(ids), torch.arange(1, 13), attend)
    previous = seen[0].diagonal(offset=-1, dim1=1, dim2=2)  # weight on the token before, by head
    assert (previous[: decoder.config.n_heads - 1] > 0.8).all()


def test_a_fitted_lookup_says_the_letter_of_the_option(tokenizer):
    """On states that hold answer, option and letter plainly, the block's own maps find the option."""
    torch.manual_seed(0)
    decoder = new_decoder(tokenizer)
    dim, count = decoder.config.dim, 3000
    words, labels = torch.randint(300, 1500, (count,)), torch.randint(1600, 1605, (count,))
    turn = torch.linalg.qr(torch.randn(dim, dim))[0]
    with torch.no_grad():
        options = decoder.embed.weight[words] + decoder.embed.weight[labels] @ turn
        asked = decoder.embed.weight[words] @ turn
        found = Lookups(asked, words, options, words, labels, torch.randn(count, dim))
        fit_lookup(decoder, decoder.blocks[4], found)
        attention = decoder.blocks[4].attn
        scores = attention.q_proj(asked[:50]) @ attention.k_proj(options[:50]).T
        assert (words[scores.argmax(1)] == words[:50]).float().mean() > 0.9
        said = decoder.head(attention.o_proj(attention.v_proj(options[:50])))[:, 1600:1605]
        assert (said.argmax(1) + 1600 == labels[:50]).float().mean() > 0.9


def test_documents_ask_for_the_right_letter(tokenizer):
    writer = Writer(tokenizer, random.Random(0))
    kinds = [writer.problem, writer.captioned, writer.mixed, writer.several, writer.drill, writer.plain]
    for write in kinds:
        document = write()
        assert len(document.ids) == len(document.weights)
        text = tokenizer.decode(document.ids)
        for letter in document.letters:
            shown = tokenizer.decode(document.ids[letter.position])
            assert shown in LETTERS[: letter.options]
            word = tokenizer.decode(letter.word)
            assert f"({shown}) {word}" in text


def test_mixtures_take_the_place_of_single_words(tokenizer):
    torch.manual_seed(0)
    decoder = new_decoder(tokenizer)
    document = Writer(tokenizer, random.Random(0)).mixed()
    x = embed(decoder, [document])
    one = document.mixtures[0]
    weights = torch.tensor(one.weights)
    wanted = (decoder.embed.weight[torch.tensor(one.words)] * weights[:, None]).sum(0)
    torch.testing.assert_close(x[one.position], wanted)


def test_stages_train_what_they_should(tokenizer):
    torch.manual_seed(0)
    decoder = new_decoder(tokenizer)
    writer = Writer(tokenizer, random.Random(0))
    for step, early, late in ((0, True, False), (800, False, True), (1000, True, True)):
        decoder.zero_grad(set_to_none=True)
        loss, parts = step_loss(decoder, [writer.document("all") for _ in range(8)], step)
        loss.backward()
        grads = [decoder.blocks[layer].mlp.up_proj.weight.grad is not None for layer in (0, 5)]
        assert grads == [early, late]
        assert torch.isfinite(loss)
        assert ("early" in parts) == bool(parts.keys() & {"problem", "early"})


def test_the_rate_warms_up_and_falls():
    assert rate_of(0, 2000) < rate_of(50, 2000) < rate_of(150, 2000) == 1.0
    assert rate_of(951, 2000) < rate_of(1200, 2000) > rate_of(1900, 2000)


def test_hidden_states_are_those_of_the_decoder(tokenizer):
    """The staged forward equals the decoder's own once all blocks are in use."""
    torch.manual_seed(0)
    decoder = new_decoder(tokenizer)
    documents = [Writer(tokenizer, random.Random(seed)).problem() for seed in range(3)]
    lengths = [len(document.ids) for document in documents]
    positions = torch.cat([torch.arange(1, length + 1) for length in lengths])
    with torch.no_grad():
        _, staged = hidden_states(decoder, documents, 5000)
        plain = decoder(embed(decoder, documents), positions, PackedAttention(lengths))
    assert torch.equal(staged, plain)
