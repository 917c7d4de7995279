"""The frozen image encoder: a vision transformer of open_clip, and what is read of it.

The preprocessing belongs to the tower and comes with it. Knows nothing of decoders or adapters.

Shapes: V views, H and W pixels, C tower width, K tokens of a view.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.errors import ModelError
from models.tower_files import tower_tensors
from models.tower_lean import make_lean
from models.tower_spec import TowerSpec

# Role, norm and its reader in a block of open_clip's own transformer, and of timm's.
OWN_NORMS = (("attn", "ln_1", "attn"), ("mlp", "ln_2", "mlp.c_fc"))
TIMM_NORMS = (("attn", "norm1", "attn.qkv"), ("mlp", "norm2", "mlp.fc1"))
GELUS = {"exact": "none", "tanh": "tanh"}  # as PyTorch calls them
SIGLIP = "vit_base_patch16_siglip_224"  # timm's name of the transformer, in its smallest shape


@dataclass(frozen=True)
class Features:
    """What is read of a tower.

    Args:
        kind: `class`, the class token after every n-th block (LaVIN, arXiv 2305.15023), or `patches`, all
            patches of one layer without the class token (LLaVA, arXiv 2304.08485).
        every: The n of `class`.
        layer: The layer of `patches`, counted from the end as hidden states are: -1 is the output of the last
            block, -2 of the one before. No norm follows.
    """

    kind: str = "class"
    every: int = 4
    layer: int = -2


class Tower(nn.Module):
    """A vision transformer of open_clip, its own or timm's, and what is read of it.

    Raises ModelError when the spec describes no tower, or the features cannot be read of it.
    """

    def __init__(self, spec: TowerSpec, features: Features) -> None:
        super().__init__()
        self.visual = _built(spec)
        self.features = features
        timm_made = isinstance(self.visual, TimmModel)
        trunk = self.visual.trunk if timm_made else self.visual.transformer
        self.blocks: nn.ModuleList = trunk.blocks if timm_made else trunk.resblocks
        self.block_prefix = "visual.trunk.blocks" if timm_made else "visual.transformer.resblocks"
        self.norms = TIMM_NORMS if timm_made else OWN_NORMS
        self.width: int = trunk.embed_dim if timm_made else self.visual.conv1.out_channels
        self.image_size: tuple[int, int] = tuple(self.visual.image_size)
        self._patches: tuple[int, int] = trunk.patch_embed.grid_size if timm_made else self.visual.grid_size
        self._read = self._indices(timm_made and not trunk.has_class_token)
        make_lean(self.blocks)
        if spec.gelu:
            if spec.gelu not in GELUS:
                raise ModelError(
                    f"tower: GELU is {spec.gelu!r}; set base.tower_gelu to {' or '.join(GELUS)}, or leave it "
                    "empty: as the weights were trained with"
                )
            for block in self.blocks:
                setattr(block.mlp, "act" if timm_made else "gelu", nn.GELU(GELUS[spec.gelu]))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens that a view gives."""
        return self._patches if self.features.kind == "patches" else (1, len(self._read))

    @property
    def tokens(self) -> int:
        """How many tokens a view gives."""
        return self.grid[0] * self.grid[1]

    @property
    def last_block(self) -> int:
        """The last block that runs: nothing is read of those behind it."""
        return self._read[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, which pictures must have."""
        return next(self.parameters()).dtype

    def forward(self, pictures: Tensor) -> Tensor:
        """float[V, 3, H, W] -> tokens float[V, K, C]."""
        found = self.visual.forward_intermediates(
            pictures,
            indices=self._read,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=self.features.kind == "class",
        )
        if self.features.kind == "patches":
            patches: Tensor = found["image_intermediates"][0]
            return patches
        return torch.stack([prefix[:, 0] for prefix in found["image_intermediates_prefix"]], dim=1)

    def _indices(self, classless: bool) -> list[int]:
        """The blocks whose outputs are read."""
        count, every, layer = len(self.blocks), self.features.every, self.features.layer
        if self.features.kind == "patches":
            if not -count <= layer <= -1:
                raise ModelError(
                    f"tower: patches of layer {layer}, but there are {count} blocks; "
                    f"set base.tower_layer to -1 (the last) to {-count}"
                )
            return [count + layer]
        if self.features.kind != "class":
            raise ModelError(f"tower: features are {self.features.kind!r}; choose class or patches")
        if classless:
            raise ModelError("tower: it has no class token to read; set base.tower_features to patches")
        if not 0 < every <= count:
            raise ModelError(
                f"tower: class tokens after every {every} blocks, but there are {count}; "
                f"set base.tower_every to 1 to {count}"
            )
        return list(range(every - 1, count, every))


class _Siglip(TimmModel):
    """SigLIP's transformer in any shape, up to its last norm."""

    def __init__(self, img_size: tuple[int, int], eps: float, **shape: object) -> None:
        nn.Module.__init__(self)
        norm = partial(nn.LayerNorm, eps=eps)
        self.image_size = img_size
        self.trunk = timm.create_model(
            SIGLIP, num_classes=0, global_pool="", img_size=img_size, norm_layer=norm, **shape
        )
        self.head = nn.Sequential()


def _built(spec: TowerSpec) -> nn.Module:
    """The vision transformer of a spec, with random weights."""
    settings = spec.model["vision_cfg"]
    if isinstance(settings.get("layers"), list):
        raise ModelError("tower: only vision transformers can be read, not convolutional towers")
    if spec.trunk is not None:
        return _Siglip(**spec.trunk)
    try:
        # Whatever a configuration says, building downloads no weights: they are loaded afterwards, whole.
        vision = open_clip.model.CLIPVisionCfg(**{**settings, "timm_model_pretrained": False})
    except TypeError as error:
        raise ModelError(f"tower: vision_cfg has an unknown setting ({error})") from error
    quick, headless = bool(spec.model.get("quick_gelu", False)), "embed_dim" not in spec.model
    try:
        visual: nn.Module = open_clip.model._build_vision_tower(
            1 if headless else spec.model["embed_dim"], vision, quick_gelu=quick
        )
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ModelError(f"tower: vision_cfg describes no tower ({reason}); correct it") from error
    if isinstance(visual, TimmModel) and not isinstance(visual.trunk, VisionTransformer):
        raise ModelError(
            f"tower: {settings['timm_model_name']} is not built of the blocks of a plain vision transformer; "
            "choose a tower that is"
        )
    if headless:
        visual.proj = None
    return visual


def load_tower_weights(tower: Tower, path: Path) -> None:
    """Loads a tower's tensors, strictly: what is beside the tower in its files does not matter.

    The path is a file of open_clip, OpenAI's CLIP or Hugging Face (safetensors or restricted .pt), or a
    Hugging Face folder. Raises ModelError when a tensor is missing, unexpected or misshapen.
    """
    visual = tower_tensors(path, isinstance(tower.visual, TimmModel))
    expected = tower.visual.state_dict()
    missing, wrong = sorted(expected.keys() - visual.keys()), []
    for name in sorted(expected.keys() & visual.keys()):
        if visual[name].shape != expected[name].shape:
            wrong.append(f"{name} is {tuple(visual[name].shape)}, not {tuple(expected[name].shape)}")
    if missing or wrong or visual.keys() - expected.keys():
        extra = sorted(visual.keys() - expected.keys())
        raise ModelError(
            f"tower: {path} does not fit the tower: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(extra)} unexpected {extra[:3]}, {len(wrong)} misshapen {wrong[:3]}"
        )
    tower.visual.load_state_dict(visual, assign=True)
