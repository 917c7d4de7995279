"""Tiny random LLaVA models of transformers in folders, and the comparison of their logits with ours."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from data.packing import PackedBatch
from data.sample import modality_of

IMAGE_ID, VOCABULARY, SIDE = 1750, 1800, 28
TOKENIZER = Path(__file__).parents[2] / "assets/mini/decoder/tokenizer.model"
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
VISION = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 7,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
}
TEXTS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
}
SIZES = [(28, 28), (60, 41), (31, 90), (200, 30), (17, 120), (112, 113)]


def made(folder: Path, text: str = "llama", vision: str = "clip", after: bool = False, **settings):
    """A random LLaVA (a LLaVA-NeXT when `after`) of transformers, and its folder."""
    tower = transformers.CLIPVisionConfig if vision == "clip" else transformers.SiglipVisionConfig
    shards = settings.pop("shards", "5GB")
    config = (transformers.LlavaNextConfig if after else transformers.LlavaConfig)(
        vision_config=tower(**VISION),
        text_config=TEXTS[text](**TEXT, tie_word_embeddings=settings.pop("tied", False)),
        image_token_index=IMAGE_ID,
        vision_feature_select_strategy="default" if vision == "clip" else "full",
        **({"image_grid_pinpoints": PINPOINTS} if after else {}) | settings,
    )
    kind = (
        transformers.LlavaNextForConditionalGeneration
        if after
        else transformers.LlavaForConditionalGeneration
    )
    torch.manual_seed(3)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder, max_shard_size=shards)
    shutil.copy(TOKENIZER, folder / "tokenizer.model")
    return model


def processor(after: bool, **settings):
    """The image processor of transformers that works with Pillow, as ours does."""
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    if after:
        return LlavaNextImageProcessorPil(**size, **{"image_grid_pinpoints": PINPOINTS, **settings})
    return LlavaImageProcessorPil(**size, **settings)


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * height).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3))
    return Image.fromarray(noise.astype(np.uint8)).resize((width, height))


def packed(system, ids: list[int], shown: list[Image.Image]) -> PackedBatch:
    """One segment, of which every position is asked for."""
    slots = [at for at, token in enumerate(ids) if token == IMAGE_ID]
    return PackedBatch(
        ids=torch.tensor([0 if token == IMAGE_ID else token for token in ids]),
        positions=torch.arange(1, len(ids) + 1),
        lengths=(len(ids),),
        modalities=(modality_of(shown),),
        slots=torch.tensor(slots, dtype=torch.long),
        pictures=torch.cat([system.preprocess(each) for each in shown]) if shown else None,
        sizes=tuple(each.size for each in shown),
        sources=torch.arange(len(ids)),
        targets=torch.zeros(len(ids), dtype=torch.long),
        sample_ids=("a",),
    )


def agree(model, system, prepare, *sizes: tuple[int, int]) -> None:
    """The logits of pictures of these sizes between words are those of transformers."""
    shown = [picture(*size) for size in sizes]
    inputs = dict(prepare(shown, return_tensors="pt")) if shown else {}
    ids = [1, 11, 12]
    for size in sizes:
        ids += [*[IMAGE_ID] * system.model.slots(*size), 20 + len(ids) % 7]
    ids += [21, 22, 23, 24]
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([ids]), **inputs).logits[0]
        ours = system.model(packed(system, ids, shown))
    assert (ours - theirs).abs().max() < 1e-4
    assert theirs.std() > 0.1  # logits that differ


def renamed(folder: Path, *changes: tuple[str, str]) -> None:
    """Writes the tensors of a folder again, their names changed by patterns."""
    tensors = load_file(folder / "model.safetensors")
    for pattern, new in changes:
        tensors = {re.sub(pattern, new, name): x for name, x in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edited(folder: Path, **changes: object) -> Path:
    """Changes settings in the description of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder
