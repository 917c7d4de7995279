"""Blocks through `torch.compile`: the two halves around a block's attention, and the tower's blocks.

The attention itself is a kernel already, and knows the segments of a batch; left out, the compiled parts ask
for nothing but tensors of N tokens, so that one compilation serves every batch.
"""

from __future__ import annotations

import torch

from models.multimodal import MultimodalLM


def compile_blocks(model: MultimodalLM, backend: str = "inductor") -> None:
    """Compiles the blocks of decoder and tower; they compute the same, within rounding."""
    for block in model.decoder.blocks:
        block.before = torch.compile(block.before, backend=backend, dynamic=True, fullgraph=True)
        block.behind = torch.compile(block.behind, backend=backend, dynamic=True, fullgraph=True)
    for block in model.tower.blocks:
        block.forward = torch.compile(block.forward, backend=backend, dynamic=True, fullgraph=True)
