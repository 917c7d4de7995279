"""A start for the mini decoder from which looking an option up is learned in minutes.

From a random start a small rotary decoder stays at chance for many millions of tokens before it learns
to find an option and give its letter (docs/log.md). The two heads this takes can be written down: one
that looks at the previous token and one that looks for the same content and copies what stood before
it. They are only where training begins; every weight is trained afterwards.

Letters: D width, H heads, E head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.decoder import Block, Decoder

SHARPNESS = 3.0  # of the previous-token heads; 9 logits between neighbours
CONSTANT = 3.0  # the embedding coordinate that is the same for every token


def orthogonal(dim: int) -> Tensor:
    """A random orthogonal matrix float[D, D]."""
    return torch.linalg.qr(torch.randn(dim, dim))[0]


@torch.no_grad()
def lookup_heads(decoder: Decoder, labels: list[tuple[int, int]]) -> None:
    """Sets the weights; `labels` are (id of an option's label, id of its letter as an answer)."""
    dim, heads = decoder.config.dim, decoder.config.n_heads
    for parameter in decoder.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1 / math.sqrt(parameter.shape[1]))
    for block in decoder.blocks:
        block.mlp.down_proj.weight.mul_(1 / math.sqrt(2 * len(decoder.blocks)))
    embedding = decoder.embed.weight
    embedding.normal_()
    embedding[:, 0] = CONSTANT
    for label, letter in labels:
        embedding[letter] = embedding[label] + 0.3 * torch.randn(dim)
    decoder.head.weight.copy_(0.02 * embedding)
    _previous_token_heads(decoder, count=heads - 1)
    lookup_blocks(decoder, list(decoder.blocks[1:]))


@torch.no_grad()
def lookup_blocks(decoder: Decoder, blocks: list[Block], said: bool = False) -> None:
    """Heads that look for the same content and copy what stands there, or what stood before it.

    They look for the token's own content and the previous token's, or, with `said`, for the word that the
    blocks below are about to say instead of the token's own.
    """
    dim, heads, width = decoder.config.dim, decoder.config.n_heads, decoder.config.head_dim
    first, moved = decoder.blocks[0].attn, (heads - 1) * width
    turned = first.o_proj.weight[:, :moved] @ first.v_proj.weight[:moved]
    own = 0.15 * _word_about_to_be_said(decoder) if said else 0.5 * torch.eye(dim)
    for block in blocks:
        attention = block.attn
        pattern = torch.randn(dim, dim) / math.sqrt(dim)
        attention.k_proj.weight.copy_(pattern)
        attention.q_proj.weight.copy_(pattern @ (own + turned.T))
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            content = orthogonal(dim)[:width]
            attention.v_proj.weight[rows] = content @ turned.T if head % 2 == 0 else content
            attention.o_proj.weight[:, rows] = 0.7 * content.T


def _word_about_to_be_said(decoder: Decoder) -> Tensor:
    """The linear map float[D, D] that best takes a word's output direction to its embedding."""
    output = decoder.head.weight - decoder.head.weight.mean(0)
    embedding = decoder.embed.weight - decoder.embed.weight.mean(0)
    return torch.linalg.lstsq(output, embedding).solution.T


def _previous_token_heads(decoder: Decoder, count: int) -> None:
    """The first block's first heads add the previous token's embedding, turned."""
    dim, width = decoder.config.dim, decoder.config.head_dim
    attention = decoder.blocks[0].attn
    frequencies = decoder.rotary.frequencies
    moved = count * width
    attention.q_proj.weight[:moved] = 0
    attention.k_proj.weight[:moved] = 0
    for head in range(count):
        for pair in range(4):  # the fastest rotations tell neighbours apart
            row, angle = head * width + pair, float(frequencies[pair])
            attention.k_proj.weight[row, 0] = SHARPNESS
            attention.q_proj.weight[row, 0] = SHARPNESS * math.cos(-angle)
            attention.q_proj.weight[row + width // 2, 0] = SHARPNESS * math.sin(-angle)
    subspace = orthogonal(dim)[:moved]
    attention.v_proj.weight[:moved] = subspace
    attention.o_proj.weight[:, :moved] = orthogonal(dim) @ subspace.T
