"""How a sample is laid out, in words, for adapter folders that are made for other software."""

from __future__ import annotations

TEXT_NOTE = (
    "`[bos] Image: N/A`, the prompt as in training, the answer, `[eos]`. `Image: N/A` and the prompt are put "
    "into tokens one after the other. Positions are relative: they may start anywhere."
)
IMAGE_NOTE = (
    "`[bos] Image: `, {slots} embeddings of the picture, the prompt as in training, the answer, `[eos]`. The "
    "embeddings, called the image prefix, are no tokens: they stand in the place of token embeddings, so the "
    "model takes `inputs_embeds`. They come from the image tower, with the tower adapters and the projector "
    "of the adapter's own folder, once per picture. With `model` as loaded above:"
)
PREFIX_CODE = """\
import torch
from data.pictures import open_picture  # in a checkout of mma
from models.build import load
from models.multimodal import inference

system = load("ADAPTER")  # the folder of the adapter that this was exported from
with inference(system.model):
    picture = system.preprocess(open_picture("picture.png"))
    prefix = system.model.project(picture)[None]  # float[1, {slots}, width of the decoder]
head = [system.tokenizer.bos_id, *system.tokenizer.encode("Image: ")]
prompt = system.tokenizer.encode("PROMPT")
embed = model.get_input_embeddings()
before, after = embed(torch.tensor([head])), embed(torch.tensor([prompt]))
inputs_embeds = torch.cat([before, prefix.to(before.dtype), after], dim=1)
answer = model.generate(inputs_embeds=inputs_embeds)
print(system.tokenizer.decode(answer[0].tolist()))"""


def prompt_notes(slots: int | None) -> dict[str, str]:
    """How a sample of each modality is laid out; without the number of slots only of text."""
    if slots is None:  # each picture has its own number of them
        return {"text": TEXT_NOTE}
    return {"text": TEXT_NOTE, "image": f"{IMAGE_NOTE}\n\n```python\n{PREFIX_CODE}\n```".format(slots=slots)}
