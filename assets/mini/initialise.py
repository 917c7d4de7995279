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

from models.decoder import Decoder

SHARPNESS = 3.0  # of the previous-token heads; 9 logits between neighbours
CONSTANT = 3.0  # the embedding coordinate that is the same for every token


def orthogonal(dim: int) -> Tensor:
    """A random orthogonal matrix float[D, D]."""
    return torch.linalg.qr(torch.randn(dim, dim))[0]


@torch.no_grad()
def lookup_heads(decoder: Decoder, labels: list[tuple[int, int]]) -> None:
    """Sets the weights; `labels` are (id of an option's label, id of its letter as an answer)."""
    dim, heads = decoder.config.dim, decoder.config.n_heads
    width = decoder.config.head_dim
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
    turned = _previous_token_heads(decoder, count=heads - 1)
    for block in decoder.blocks[1:]:
        attention = block.attn
        pattern = torch.randn(dim, dim) / math.sqrt(dim)
        attention.k_proj.weight.copy_(pattern)
        attention.q_proj.weight.copy_(pattern @ (0.5 * torch.eye(dim) + turned.T))
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            content = orthogonal(dim)[:width]
            attention.v_proj.weight[rows] = content @ turned.T if head % 2 == 0 else content
            attention.o_proj.weight[:, rows] = 0.7 * content.T


def _previous_token_heads(decoder: Decoder, count: int) -> Tensor:
    """The first block's first heads copy the previous token, turned by the matrix that is returned."""
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
    turn = orthogonal(dim)
    attention.v_proj.weight[:moved] = subspace
    attention.o_proj.weight[:, :moved] = turn @ subspace.T
    return turn @ subspace.T @ subspace
