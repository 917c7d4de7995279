"""The sites of every family, and what is no site."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mma import attach, site_table
from mma.find import find_sites
from tests.mma.foreign import DECODERS, TOWERS, build

SELF_ATTENTION = {"attn": ("q_proj", "k_proj", "v_proj")}
GATED = {**SELF_ATTENTION, "mlp": ("gate_proj", "up_proj")}
READERS = {
    "LLaMA": GATED,
    "LLaMA with biases": GATED,
    "Qwen2": GATED,
    "Qwen3": GATED,
    "Mistral": GATED,
    "Gemma": GATED,
    "Gemma2": GATED,
    "Phi": {"both": ("q_proj", "k_proj", "v_proj", "fc1")},
    "StableLM": GATED,
    "StableLM, parallel": {"both": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")},
    "GPT-NeoX": {"attn": ("query_key_value",), "mlp": ("dense_h_to_4h",)},
    "OPT": {**SELF_ATTENTION, "mlp": ("fc1",)},
    "CLIP": {**SELF_ATTENTION, "mlp": ("fc1",)},
    "SigLIP": {**SELF_ATTENTION, "mlp": ("fc1",)},
    "open_clip": {"attn": ("attn",), "mlp": ("c_fc",)},
    "timm": {"attn": ("qkv",), "mlp": ("fc1",)},
}


@pytest.mark.parametrize("name", READERS)
def test_the_norms_and_their_readers(name):
    if name in DECODERS:
        sites = attach(decoder=build(DECODERS[name])).sites
    else:
        sites = attach(tower=build(TOWERS[name]), picture=torch.zeros(1, 3, 16, 16)).sites
    norms = [site for site in sites if site.kind == "norm"]
    leaves = [(s.layer, s.role, tuple(r.rpartition(".")[2] for r in s.readers)) for s in norms]
    assert leaves == [(layer, role, names) for layer in range(2) for role, names in READERS[name].items()]
    assert {site.channels for site in norms} == {32}
    linears = {site.path for site in sites if site.kind == "linear"}
    if name != "open_clip":  # its attention is one module
        assert {reader for site in norms for reader in site.readers} < linears
    table = site_table(sites)
    for role, names in READERS[name].items():
        assert f" {role} " in table
        assert f"-> {', '.join(names)}" in table
    assert "0 to 1" in table


def test_what_other_modules_read_is_no_site():
    """A norm whose output is added, normed again or read outside of a block."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pre, self.post, self.linear = nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x):
            return x + self.post(self.linear(self.pre(x)))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 9)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    model = Model()
    sites = find_sites(model, "tower", lambda: model(torch.randn(1, 2, 4)), "tower.")
    assert [(site.path, site.readers, site.layer) for site in sites if site.kind == "norm"] == [
        (f"tower.blocks.{i}.pre", (f"tower.blocks.{i}.linear",), i) for i in range(3)
    ]
    assert [site.path for site in sites if site.kind == "linear"] == [
        f"tower.blocks.{i}.linear" for i in range(3)
    ]
    assert not model.blocks[0].pre._forward_hooks
    assert not model.head._forward_pre_hooks
