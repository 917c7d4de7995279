"""A frozen base in pieces: every process keeps its share of a block and gathers the block to compute it.

FSDP2 (`torch.distributed.fsdp.fully_shard`; arXiv 2304.11277). What is trained stays whole in every process,
and its gradients are summed as without sharding. Gathering is a matter for all processes at once, so each of
them has to make the same passes through the blocks, forward and backward.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter

from training.errors import RunError
from training.parallel import World


def shard_base(
    decoder: nn.Module,
    blocks: Sequence[nn.Module],
    trained: Iterable[Parameter],
    *,
    world: World,
    device: torch.device,
) -> dict[Parameter, Parameter]:
    """Moves the blocks to the device, one after the other, and leaves this process its share of each.

    `decoder` runs the blocks; its forward takes the stream, a float tensor, first. Gives the new parameter
    of each that was replaced: who keeps the old one keeps its memory. A world of one shards nothing. Raises
    RunError for a quantised base, and where PyTorch cannot leave trained parameters whole.
    """
    if world.size == 1:
        return {}
    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise RunError(
            f"run.shard: PyTorch {torch.__version__} cannot leave trained parameters whole; take a newer one"
        )
    whole = set(trained)
    for block in blocks:
        if any(not p.is_floating_point() for p in block.parameters() if p not in whole):
            raise RunError("run.shard: a quantised base cannot be sharded; turn off one of the two")
    mesh = DeviceMesh.from_group(world.data or dist.group.WORLD, device.type)
    outside = set(decoder.parameters()) - {p for block in blocks for p in block.parameters()}
    replaced = {}
    for block in blocks:
        block.to(device)
        before = dict(block.named_parameters())
        fully_shard(block, mesh=mesh, ignored_params=whole)
        after = dict(block.named_parameters())
        replaced |= {old: after[name] for name, old in before.items() if after[name] is not old}
    # Around all of them, so that the next block is gathered while one computes.
    fully_shard(decoder, mesh=mesh, ignored_params=whole | outside)
    decoder.register_forward_pre_hook(_with_backward)
    return replaced


def _with_backward(decoder: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Lets gradients reach the stream: the blocks are gathered for the backward pass in every process.

    Otherwise a process whose batch has no picture would not go back beyond the first adapter, while others
    go back to the projector and wait for it.
    """
    stream: Tensor = arguments[0]
    if torch.is_grad_enabled() and not stream.requires_grad:
        stream = stream.detach().requires_grad_()
    return (stream, *arguments[1:])
