"""Blocks through `torch.compile`: the two halves around a block's attention, and the tower's blocks.

The attention itself is a kernel already, and knows the segments of a batch; left out, the compiled parts ask
for nothing but tensors of N tokens, so that a new batch needs no new graph. What does need one: a first block
whose input has no gradient, a trained part, one picture instead of several, evaluation.
"""

from __future__ import annotations

import torch

from models.multimodal import MultimodalLM

GRAPHS = 64  # a dozen or two are what was seen


def compile_blocks(model: MultimodalLM, backend: str = "inductor") -> None:
    """Compiles the blocks of decoder and tower; they compute the same, within rounding."""
    # All blocks share their code, and so its limit of graphs, beyond which a run would end.
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    for block in model.decoder.blocks:
        block.before = torch.compile(block.before, backend=backend, dynamic=True, fullgraph=True)
        block.behind = torch.compile(block.behind, backend=backend, dynamic=True, fullgraph=True)
    for block in model.tower.blocks:
        block.forward = torch.compile(block.forward, backend=backend, dynamic=True, fullgraph=True)
