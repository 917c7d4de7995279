"""The peer: `transformers` with PEFT's LoRA, as its users train it; pictures are ready embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from data.sample import Tokens
from models.decoder_config import DecoderConfig

BATCH = 8  # rows at a time; 4 and 16 took as long or longer


def peer(
    config: DecoderConfig, samples: Sequence[Tokens], device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """A step of LoRA (r = 8 on q and v): samples grouped by length, padded to the longest of a group."""
    model = peft_model(config, device, dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    ordered = sorted(samples, key=len)
    batches = [
        _padded(ordered[start : start + BATCH], config.dim, device, dtype)
        for start in range(0, len(ordered), BATCH)
    ]
    embed = model.get_input_embeddings()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for ids, mask, labels, prefix in batches:
            embedded = embed(ids)
            inputs = torch.where(prefix.isnan(), embedded, prefix)
            model(inputs_embeds=inputs, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()

    return step


def peft_model(config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A LLaMA of the same shape with random weights and LoRA."""
    torch.manual_seed(0)
    llama = LlamaConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        intermediate_size=config.ffn_dim,
        vocab_size=config.vocab_size,
        use_cache=False,
    )
    with torch.device(device):
        base = LlamaForCausalLM(llama).to(dtype)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model: torch.nn.Module = get_peft_model(base, lora)
    return model.train()


def _padded(
    samples: Sequence[Tokens], dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, mask and labels int64[B, T], and the picture's embeddings float[B, T, D], NaN elsewhere."""
    longest = max(len(sample) for sample in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    prefix = torch.full((*ids.shape, dim), float("nan"), dtype=dtype)
    for row, sample in enumerate(samples):
        length = len(sample)
        ids[row, :length] = torch.tensor(sample.ids)
        mask[row, :length] = 1
        supervised = torch.tensor(sample.supervised)
        labels[row, :length] = ids[row, :length].where(supervised, torch.tensor(-100))
        prefix[row, list(sample.slots)] = torch.randn(len(sample.slots), dim, dtype=dtype)
    return ids.to(device), mask.to(device), labels.to(device), prefix.to(device)
