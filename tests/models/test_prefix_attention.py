"""Texts behind one prompt equal each prompt and text alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.attention import PackedAttention
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.prefix_attention import PrefixAttention
from tests.conftest import randomise
from tests.models.test_attention import plain, random_qkv

segments = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 5), min_size=1, max_size=4)), min_size=1, max_size=4
)


def apart(x: Tensor, prompts: list[int], texts: list[list[int]]) -> list[tuple[Tensor, list[Tensor]]]:
    """The prompt and the texts of every segment."""
    parts = iter(x.split([length for p, t in zip(prompts, texts, strict=True) for length in (p, *t)]))
    return [(next(parts), [next(parts) for _ in own]) for own in texts]


@settings(max_examples=30, deadline=None)
@given(segments, st.sampled_from([(4, 4), (4, 2), (2, 1)]), st.integers(0, 1000))
def test_each_text_sees_its_prompt_and_itself(shape, heads, seed):
    prompts, texts = [p for p, _ in shape], [t for _, t in shape]
    q, k, v = random_qkv([p + sum(t) for p, t in shape], *heads, seed)
    got = apart(PrefixAttention(prompts, texts)(0, q, k, v), prompts, texts)
    parts = zip(*(apart(x, prompts, texts) for x in (q, k, v)), strict=True)
    for (got_prompt, got_texts), segment in zip(got, parts, strict=True):
        alone = [prompt for prompt, _ in segment]
        torch.testing.assert_close(got_prompt, plain(*alone), atol=1e-5, rtol=1e-5)
        for index, got_text in enumerate(got_texts):
            whole = [torch.cat([prompt, own[index]]) for prompt, own in segment]
            wanted = plain(*whole)[len(got_prompt) :]
            torch.testing.assert_close(got_text, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["plain", "parallel"])
def test_through_a_decoder(family):
    decoder = Decoder(DecoderConfig(32, 2, 4, 2, 48, vocab_size=60, parallel=family == "parallel"))
    randomise(decoder, 3)
    generator = torch.Generator().manual_seed(1)
    prompts, texts = [6, 3], [[4, 0, 2], [1, 5]]
    ids = torch.randint(60, (sum(prompts) + sum(map(sum, texts)),), generator=generator)
    attend = PrefixAttention(prompts, texts)
    with torch.no_grad():
        got = apart(decoder(decoder.embed(ids), attend.positions, attend), prompts, texts)
        for (prompt, behind), (got_prompt, got_behind) in zip(apart(ids, prompts, texts), got, strict=True):
            for own, got_own in zip(behind, got_behind, strict=True):
                whole = torch.cat([prompt, own])
                places = torch.arange(1, len(whole) + 1)
                wanted = decoder(decoder.embed(whole), places, PackedAttention([len(whole)]))
                torch.testing.assert_close(torch.cat([got_prompt, got_own]), wanted, atol=1e-4, rtol=1e-4)


def test_in_half_precision_it_is_near():
    q, k, v = random_qkv([12], 4, 2, 0)
    attend = PrefixAttention([5], [[3, 4]])
    got = attend(0, *(x.bfloat16() for x in (q, k, v)))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), attend(0, q, k, v), atol=3e-2, rtol=3e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
def test_on_the_device_it_is_near_in_half_precision():
    q, k, v = random_qkv([12, 9], 4, 2, 0)
    shape = ([5, 6], [[3, 4], [3, 0]])
    wanted = PrefixAttention(*shape)(0, q, k, v)
    got = PrefixAttention(*shape, "cuda")(0, *(x.cuda().bfloat16() for x in (q, k, v)))
    torch.testing.assert_close(got.float().cpu(), wanted, atol=3e-2, rtol=3e-2)
