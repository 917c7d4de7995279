"""One process's share of a decoder whose layers are split over several (Megatron-LM, arXiv 1909.08053).

The layers are those of fairscale, as in Meta's own code. They are built tiny and given their share
afterwards, because fairscale would first allocate the whole of every layer. What is not split (norms,
adapters, the stream) is the same in every process of a group, and so are its gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as groups
from fairscale.nn.model_parallel import layers as split_layers
from torch import Tensor, nn

from models.checkpoint import Checkpoint
from models.decoder import Decoder
from models.decoder_config import DecoderConfig
from models.errors import ModelError
from models.meta_folder import open_meta
from models.rope import Rotary
from models.tensor_files import map_tensors
from models.weights import open_folder

COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # split by outputs
ROW = ("o_proj", "down_proj")  # split by inputs; their sums are added up

Share = Callable[[str, torch.Size], Tensor]
"""(name of a parameter, its whole shape) -> this process's share of it."""


@contextmanager
def tensor_parallel(size: int) -> Iterator[int]:
    """Every `size` processes in a row hold one decoder together; gives the place of this one among them."""
    if not dist.is_initialized() or dist.get_world_size() % size:
        there = dist.get_world_size() if dist.is_initialized() else 1
        raise ModelError(f"tensor parallel: {there} processes do not make groups of {size}; start more")
    with redirect_stdout(StringIO()):  # fairscale announces its groups
        groups.initialize_model_parallel(size)
    try:
        yield groups.get_model_parallel_rank()
    finally:
        groups.destroy_model_parallel()


def split_decoder(decoder: Decoder) -> Decoder:
    """Leaves in a whole decoder this process's share; to be called before there are adapters.

    Raises ModelError when the processes do not divide its heads, widths and vocabulary, and for a quantised
    decoder.
    """
    whole = dict(decoder.named_parameters(remove_duplicate=False))
    return _split(decoder, lambda name, shape: _piece(name, whole[name].detach()))


def load_share(folder: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Decoder:
    """This process's share of the decoder in a folder; where Meta's files are as many, from its own alone.

    Raises ModelError as `load_decoder` and `split_decoder` do.
    """
    source = open_folder(folder)
    paths = sorted(folder.glob("consolidated.*.pth"))
    if len(paths) == _size():
        share = _own_file(open_meta(folder), map_tensors(paths[groups.get_model_parallel_rank()]))
    else:
        share = partial(_from_whole, source)
    with torch.device("meta"):
        decoder = Decoder(source.config)
    config = source.config
    decoder = _split(decoder, lambda name, shape: share(name, shape).to(device=device, dtype=dtype))
    decoder.rotary = Rotary(config.turning, config.rope_theta, config.rope_scaling).to(device)
    return decoder.eval()


def _from_whole(source: Checkpoint, name: str, shape: torch.Size) -> Tensor:
    return _piece(name, source.tensor(name, shape))


def _own_file(source: Checkpoint, held: dict[str, Tensor]) -> Share:
    """Shares as they lie in one file: Meta's split is by whole heads, so rotary pairs stay together."""

    def share(name: str, shape: torch.Size) -> Tensor:
        there = source.name_of(name)
        if there not in held:
            raise ModelError(f"weights: {source.folder} has no tensor {there}; the files are incomplete")
        axes = (0, 1) if name == "embed.weight" else (_axis(name),)  # LLaMA 1 and 2 split it by channels
        fitting = [_without_share(shape, axis) for axis in axes]
        if held[there].shape not in fitting:
            raise ModelError(
                f"weights: {there} in a shard of {source.folder} is {tuple(held[there].shape)}, not "
                f"{' or '.join(str(tuple(each)) for each in fitting)}; it is of another model"
            )
        return source.arrange(name, held[there])

    return share


def _split(decoder: Decoder, share: Share) -> Decoder:
    """Puts split layers in the place of the decoder's own, and this process's share in them."""
    _check(decoder.config)
    shapes = {name: p.shape for name, p in decoder.named_parameters(remove_duplicate=False)}
    for path, module in list(decoder.named_modules()):
        leaf = path.rpartition(".")[2]
        names = [name for name in shapes if name.rpartition(".")[0] == path]
        if not names:
            continue
        if leaf in (*COLUMN, *ROW) and type(module) is not nn.Linear:
            raise ModelError(
                f"tensor parallel: {path} is a {type(module).__name__}; a quantised decoder cannot be split"
            )
        parts = {}
        for name in names:
            tied = name == "head.weight" and decoder.config.tied
            parts[name] = decoder.embed.weight if tied else nn.Parameter(share(name, shapes[name]))
        layer = _layer(leaf, shapes[names[0]], parts)
        for name, parameter in parts.items():
            setattr(layer or module, name.rpartition(".")[2], parameter)
        if layer is not None:
            decoder.set_submodule(path, layer)
    return decoder


def _layer(leaf: str, shape: torch.Size, parts: dict[str, nn.Parameter]) -> nn.Module | None:
    """The split layer of that name, its weight still tiny; None where nothing is split."""
    size, rank, kept = _size(), groups.get_model_parallel_rank(), {"init_method": _as_it_is}
    if leaf in COLUMN or leaf == "head":
        layer = split_layers.ColumnParallelLinear(1, size, bias=False, gather_output=leaf == "head", **kept)
        layer.out_features, layer.in_features = shape
        layer.output_size_per_partition = shape[0] // size
    elif leaf in ROW:
        layer = split_layers.RowParallelLinear(size, 1, bias=False, input_is_parallel=True, **kept)
        layer.out_features, layer.in_features = shape
        layer.input_size_per_partition = shape[1] // size
    elif leaf == "embed" and parts["embed.weight"].shape[0] == shape[0]:
        layer = split_layers.ParallelEmbedding(1, size, **kept)
        layer.num_embeddings, layer.embedding_dim = shape
        layer.embedding_dim_per_partition = shape[1] // size
    elif leaf == "embed":
        layer = split_layers.VocabParallelEmbedding(size, 1, **kept)
        layer.num_embeddings, layer.embedding_dim = shape
        rows = layer.num_embeddings_per_partition = shape[0] // size
        layer.vocab_start_index, layer.vocab_end_index = rank * rows, (rank + 1) * rows
    else:
        return None
    return layer


def _check(config: DecoderConfig) -> None:
    """Every process gets whole heads and an equal share of the rest."""
    wholes = {
        "heads": config.n_heads,
        "key-value heads": config.n_kv_heads,
        "hidden channels": config.ffn_dim,
        "words": config.vocab_size,
    }
    for what, count in wholes.items():
        if count % _size():
            raise ModelError(
                f"tensor parallel: {_size()} processes do not divide the decoder's {count} {what}; "
                "take a number that does"
            )


def _axis(name: str) -> int | None:
    """Which axis of a parameter is split; None: every process has the whole of it."""
    module, leaf = name.split(".")[-2:]
    if module in ROW:
        return 1 if leaf == "weight" else None
    return 0 if module in (*COLUMN, "embed", "head") else None


def _piece(name: str, whole: Tensor) -> Tensor:
    axis = _axis(name)
    if axis is None:
        return whole
    return whole.chunk(_size(), axis)[groups.get_model_parallel_rank()].clone()


def _without_share(shape: torch.Size, axis: int | None) -> torch.Size:
    return torch.Size(n // _size() if index == axis else n for index, n in enumerate(shape))


def _size() -> int:
    size: int = groups.get_model_parallel_world_size()
    return size


def _as_it_is(weight: Tensor) -> Tensor:
    return weight
