"""Projectors: shapes and sizes of every kind, and plain versions of what they compute."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.projector import keeps_tokens, make_projector, projector_tokens
from tests.conftest import randomise


def made(kind: str, width: int = 12, dim: int = 8, grid: tuple[int, int] = (4, 6)) -> nn.Module:
    projector = make_projector(kind, width, dim, grid, 5)
    randomise(projector, 0)
    return projector


@pytest.mark.parametrize(
    ("kind", "tokens", "keeps"),
    [
        ("class_token", 24, True),
        ("linear", 24, True),
        ("mlp1x_gelu", 24, True),
        ("mlp2x_gelu", 24, True),
        ("mlp3x_gelu", 24, True),
        ("resampler-1", 1, False),
        ("resampler-32", 32, False),
        ("mean-1", 1, False),
        ("mean-9", 9, False),
        ("mean-16", 16, False),
    ],
)
def test_tokens_of_every_kind(kind, tokens, keeps):
    assert projector_tokens(kind, (4, 6)) == tokens
    assert keeps_tokens(kind) is keeps
    features = torch.randn(3, 24, 12)
    projector = made(kind)
    projected = projector(features)
    assert projected.shape == (3, tokens, 8)
    torch.testing.assert_close(projector(features[1:2]), projected[1:2])  # no view sees another
    projected.sum().backward()
    assert all(p.grad is not None for p in projector.parameters())


@pytest.mark.parametrize(
    ("kind", "width", "dim", "parameters"),
    [
        ("class_token", 1024, 4096, 1024 * 128 + 128 + 128 * 4096 + 4096),
        ("linear", 1024, 6656, 1024 * 6656 + 6656),  # LLaVA-33B
        ("mlp2x_gelu", 1024, 4096, 20_979_712),  # LLaVA-NeXT: 20.0M in units of 2^20
        ("mlp2x_gelu", 1024, 8192, 75_513_856),  # and 72.0M
        ("mlp2x_gelu", 1152, 2560, 1152 * 2560 + 2560 + 2560 * 2560 + 2560),
    ],
)
def test_published_sizes(kind, width, dim, parameters):
    with torch.device("meta"):
        projector = make_projector(kind, width, dim, (24, 24), 128)
    assert sum(p.numel() for p in projector.parameters()) == parameters


@pytest.mark.parametrize(("kind", "count"), [("linear", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_layers_with_the_exact_gelu_between(kind, count):
    projector, x = made(kind), torch.randn(2, 24, 12)
    layers = [module for module in projector.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == count
    expected = x @ layers[0].weight.T + layers[0].bias
    for layer in layers[1:]:
        expected = 0.5 * expected * (1 + torch.erf(expected / math.sqrt(2)))
        expected = expected @ layer.weight.T + layer.bias
    torch.testing.assert_close(projector(x), expected)


def test_mean_pooling_averages_neighbours():
    projector, x = made("mean-4"), torch.randn(1, 24, 12)
    square = x.reshape(4, 6, 12)
    pooled = [square[r : r + 2, c : c + 3].mean(dim=(0, 1)) for r in (0, 2) for c in (0, 3)]
    torch.testing.assert_close(projector(x)[0], projector.mlp(torch.stack(pooled)))


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def test_the_resampler_equals_a_plain_version():
    """TinyLLaVA's: latents look at features and at themselves, eight heads of 64, three layers."""
    projector, x = made("resampler-3"), torch.randn(1, 24, 12)
    media = x[0] @ projector.project.weight.T + projector.project.bias
    latents = projector.latents
    assert len(projector.layers) == 3
    for layer in projector.layers:
        inner = normed(latents, layer.norm_latents)
        seen = torch.cat([normed(media, layer.norm_media), inner])
        queries = inner @ layer.to_q.weight.T
        keys, values = (seen @ part.T for part in layer.to_kv.weight.split(512))
        heads = []
        for head in range(8):
            cut = slice(64 * head, 64 * head + 64)
            scores = queries[:, cut] @ keys[:, cut].T / 8
            heads.append(scores.softmax(-1) @ values[:, cut])
        latents = latents + torch.cat(heads, dim=-1) @ layer.to_out.weight.T
        norm, widen, _, narrow = layer.feed
        hidden = nn.functional.gelu(normed(latents, norm) @ widen.weight.T)
        assert hidden.shape[-1] == 4 * 8
        latents = latents + hidden @ narrow.weight.T
    torch.testing.assert_close(projector(x)[0], normed(latents, projector.norm), atol=1e-5, rtol=1e-5)


def test_latents_start_apart():
    latents = make_projector("resampler-64", 12, 128, (4, 6), 0).latents
    assert latents.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "kind", ["mlp", "mlp0x_gelu", "mlp2x_relu", "resampler", "mean-0", "qformer", "mean--4", ""]
)
def test_unknown_kinds(kind):
    for ask in (lambda: projector_tokens(kind, (2, 2)), lambda: make_projector(kind, 4, 4, (2, 2), 4)):
        with pytest.raises(
            ModelError, match=rf"'{kind}' is no kind of projector; choose class_token, linear, "
        ):
            ask()


@pytest.mark.parametrize("kind", ["mean-8", "mean-25"])
def test_means_that_are_no_square(kind):
    with pytest.raises(
        ModelError, match=rf"'{kind}' asks for .* makes a square of them, such as mean-4, of at most 4 x 4"
    ):
        projector_tokens(kind, (4, 6))
