"""Tunes a frozen Hugging Face decoder and image encoder with MMA adapters to name the colour of a picture.

    python -m examples.hugging_face

Ten seconds on two cores; nothing is downloaded: the decoder is the embedded mini base, the encoder a
random CLIP.
Prints how many of 32 new pictures are named right without and with the adapter: 8 (guessing), then 32.
"""

import sentencepiece
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

from mma import MMAConfig, attach

COLOURS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0), "yellow": (1.0, 1.0, 0)}
torch.manual_seed(0)
decoder = AutoModelForCausalLM.from_pretrained("assets/mini/decoder", dtype=torch.float32)
tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                         num_attention_heads=4, image_size=32, patch_size=16))  # fmt: skip
tokenizer = sentencepiece.SentencePieceProcessor(model_file="assets/mini/decoder/tokenizer.model")
prompt = torch.tensor(tokenizer.encode("Question: Which colour?\nAnswer:"))
names = torch.tensor([tokenizer.encode(name)[0] for name in COLOURS])

# Freezes both, finds the norms that adapters can sit behind, and stores the projector with the adapter.
projector = nn.Linear(64, decoder.config.hidden_size)
adapters = attach(decoder=decoder, tower=tower, parts=lambda config: {"projector": projector})
adapters.add_adapter("colours", MMAConfig(temperature=1.0))


def scores(colours: torch.Tensor) -> torch.Tensor:
    """Logits float[B, 4] of the colours' names after one noisy picture of each colour int64[B]."""
    flat = torch.tensor(list(COLOURS.values()))[colours][:, :, None, None]
    seen = tower(flat + 0.3 * torch.randn(len(colours), 3, 32, 32)).pooler_output
    words = decoder.get_input_embeddings()(prompt).expand(len(colours), -1, -1)
    with adapters.carrying("image"):
        logits = decoder(inputs_embeds=torch.cat([projector(seen)[:, None], words], dim=1)).logits
    return logits[:, -1, names]


def count() -> str:
    """How many of 32 new pictures are named right."""
    colours = torch.arange(32) % 4
    with torch.no_grad():
        return f"{(scores(colours).argmax(1) == colours).sum()} of 32 right"


print("before:", count())
optimizer = torch.optim.AdamW(adapters.trainable_parameters().values(), lr=3e-3)
for _ in range(60):
    colours = torch.randint(0, 4, (16,))
    loss = nn.functional.cross_entropy(scores(colours), colours)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"after 60 steps: {count()}, loss {loss.item():.3f}")
adapters.save_pretrained("runs/colours")
print(adapters.get_model_status())
