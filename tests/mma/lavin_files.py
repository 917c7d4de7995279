"""Checkpoints in the layout of the public LaVIN code, written by a second table of its names."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

ARGUMENTS = {
    "adapter_type": "attn",
    "visual_adapter_type": "router",
    "adapter_dim": 8,
    "adapter_scale": 1.0,
    "temperature": 1.0,
    "llm_model": "7B",
}


def published(trained: dict[str, Tensor], layers: int = 2, blocks: int = 4) -> dict[str, Tensor]:
    """The trained tensors of the tiny system as the public code names, shapes and orders them."""
    visual = "visual.transformer.resblocks"
    places = {}
    for i in range(layers):
        places[f"decoder.blocks.{i}.attn_norm"] = f"module.layers.{i}.adapter_attn"
        places[f"decoder.blocks.{i}.mlp_norm"] = f"module.layers.{i}.adapter_mlp"
    for i in range(blocks):
        places[f"tower.{visual}.{i}.ln_1"] = f"module.backbone.{visual}.{i}.adapter_attn"
        places[f"tower.{visual}.{i}.ln_2"] = f"module.backbone.{visual}.{i}.adapter_mlp"
    state = {}
    for ours, theirs in places.items():
        if f"{ours}.down.weight" not in trained:
            continue
        state[f"{theirs}.conv_A.weight"] = trained[f"{ours}.down.weight"][..., None]
        state[f"{theirs}.conv_A.bias"] = trained[f"{ours}.down.bias"]
        routes = trained[f"{ours}.up"]
        biases = trained[f"{ours}.up_bias"].chunk(len(routes))
        for route, weight, bias in zip(("conv_B", "conv_D"), routes, biases, strict=False):
            state[f"{theirs}.{route}.weight"] = weight[..., None]
            state[f"{theirs}.{route}.bias"] = bias
        for leaf in ("weight", "bias"):
            if f"{ours}.router.{leaf}" in trained:
                state[f"{theirs}.expert_weights.{leaf}"] = trained[f"{ours}.router.{leaf}"]
    state["module.adapter_proj.conv_A.weight"] = trained["projector.down.weight"]
    state["module.adapter_proj.conv_A.bias"] = trained["projector.down.bias"]
    state["module.adapter_proj.conv_B.weight"] = trained["projector.up.weight"]
    state["module.adapter_proj.conv_B.bias"] = trained["projector.up.bias"]
    state["module.adapter_modality_embedding.weight"] = trained["modality.weight"]
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def write(path: Path, state: dict[str, object], **arguments: object) -> Path:
    """A checkpoint as the public training script saves it."""
    content = {
        "model": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 9e-3}]},
        "epoch": 19,
        "scaler": None,
        "args": argparse.Namespace(**{**ARGUMENTS, **arguments}),
    }
    torch.save(content, path)
    return path
