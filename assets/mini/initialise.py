"""A start for the mini decoder from which looking an option up is learned in minutes.

From a random start a small rotary decoder stays at chance for many millions of tokens before it learns
to find an option and give its letter (docs/log.md). The two heads this takes can be written down: one
that looks at the previous token and one that looks for the same content and copies what stood before
it. They are only where training begins; every weight is trained afterwards.

Letters: D width, H heads, E head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.decoder import Block, Decoder

SHARPNESS = 3.0  # of the previous-token heads; 9 logits between neighbours
CONSTANT = 3.0  # the embedding coordinate that is the same for every token

MATCH = 3.5  # of a fitted lookup's queries and keys: several logits for the same content
STRENGTH = 80.0  # of what a fitted lookup says, as strong as the stream it is added to


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
    turned = _previous_token_heads(decoder, count=heads - 1)
    for block in decoder.blocks[1:]:
        _lookup_block(block, turned)


def _lookup_block(block: Block, turned: Tensor) -> None:
    """Heads that look for the same content and copy what stands there, or what stood before it."""
    dim, heads, width = (
        turned.shape[0],
        block.attn.o_proj.in_features // block.attn.head_dim,
        block.attn.head_dim,
    )
    attention = block.attn
    pattern = torch.randn(dim, dim) / math.sqrt(dim)
    attention.k_proj.weight.copy_(pattern)
    attention.q_proj.weight.copy_(pattern @ (0.5 * torch.eye(dim) + turned.T))
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        content = orthogonal(dim)[:width]
        attention.v_proj.weight[rows] = content @ turned.T if head % 2 == 0 else content
        attention.o_proj.weight[:, rows] = 0.7 * content.T


@dataclass(frozen=True)
class Lookups:
    """Normed hidden states where a letter is asked and at the options, and what they should tell."""

    asked: Tensor  # float[A, D]
    answers: Tensor  # int64[A], first piece of the right option
    options: Tensor  # float[B, D]
    words: Tensor  # int64[B], first piece of each option
    letters: Tensor  # int64[B], the answer letter of each option
    others: Tensor  # float[C, D], at other places, which must not be found


@torch.no_grad()
def fit_lookup(decoder: Decoder, block: Block, found: Lookups) -> None:
    """Makes a block answer with the letter of the option that the blocks below have in mind.

    Queries, keys and values are linear maps, so each is fitted by ridge regression to what it should
    carry: the answer's embedding, the option's embedding, the output direction of the option's letter.
    """
    embedding, output = decoder.embed.weight, decoder.head.weight - decoder.head.weight.mean(0)
    ask = _ridge(found.asked, embedding[found.answers])
    nothing = torch.zeros(len(found.others), embedding.shape[1])
    offered = torch.cat([embedding[found.words], nothing])
    offer = _ridge(torch.cat([found.options, found.others]), offered)
    tell = _ridge(found.options, functional.normalize(output[found.letters], dim=1))
    dim, width = decoder.config.dim, decoder.config.head_dim
    attention = block.attn
    pattern = MATCH * orthogonal(dim)
    steady = torch.arange(dim) % (width // 2) >= width // 6  # slow rotations: they match over a distance
    pattern[~steady] = 0
    content = orthogonal(dim)
    attention.q_proj.weight.copy_(pattern @ ask)
    attention.k_proj.weight.copy_(pattern @ offer)
    attention.v_proj.weight.copy_(content @ tell)
    attention.o_proj.weight.copy_(STRENGTH * content.T)


def _ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """The matrix float[E, D] with inputs @ matrix.T closest to the targets."""
    square = inputs.T @ inputs + 1e-2 * len(inputs) * torch.eye(inputs.shape[1])
    matrix = torch.linalg.solve(square, inputs.T @ targets).T
    explained = 1 - (inputs @ matrix.T - targets).square().mean() / targets.var(0).mean()
    print(f"fitted lookup: {explained:.2f} of the variance explained")
    return matrix


def _previous_token_heads(decoder: Decoder, count: int) -> Tensor:
    """The first block's first heads add the previous token's embedding, turned by the returned matrix."""
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
    turn = orthogonal(dim)
    attention.o_proj.weight[:, :moved] = turn @ subspace.T
    return turn @ subspace.T @ subspace
