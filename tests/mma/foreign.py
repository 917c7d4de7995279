"""Tiny random models of other libraries, one of every family that adapters are promised for."""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import timm
import torch
import transformers as hf
from torch import Tensor, nn

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
OPT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "vocab_size": 100,
    "word_embed_proj_dim": 32,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
DECODERS: dict[str, Callable[[], nn.Module]] = {
    "LLaMA": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "LLaMA with biases": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)
    ),
    "Qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "Qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8)),
    "Mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED)),
    "Gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**GROUPED, head_dim=8)),
    "Gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED, head_dim=8)),
    "Phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SHAPE)),
    "StableLM": lambda: hf.StableLmForCausalLM(hf.StableLmConfig(**GROUPED)),
    "StableLM, parallel": lambda: hf.StableLmForCausalLM(
        hf.StableLmConfig(**GROUPED, use_parallel_residual=True)
    ),
    "GPT-NeoX": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SHAPE)),
    "OPT": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
}
TOWERS: dict[str, Callable[[], nn.Module]] = {
    "CLIP": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION)),
    "SigLIP": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**VISION)),
    "open_clip": lambda: open_clip.model.VisionTransformer(16, 8, 32, 2, 2, 4.0, output_dim=16),
    "timm": lambda: timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0
    ),
}


def build(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The model with random weights, biases and gains too, ready to answer."""
    torch.manual_seed(seed)
    model = make().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.1 if parameter.ndim == 1 else 0.02))
    return model


def logits(decoder: nn.Module, ids: Tensor) -> Tensor:
    """Logits float[B, T, V]."""
    out: Tensor = decoder(input_ids=ids).logits
    return out


def features(tower: nn.Module, pictures: Tensor) -> Tensor:
    """What the tower gives for pictures, as one tensor."""
    out = tower(pictures)
    found: Tensor = out if isinstance(out, Tensor) else out.last_hidden_state
    return found
