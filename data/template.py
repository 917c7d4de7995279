"""The layout of one sample as tokens: prefix, image slots, prompt and response.

Supervision is decided here, where the response is put in, never by searching in finished ids. Knows
nothing of prompt formats (`prompts.py`) or batches (`packing.py`).
"""

from __future__ import annotations

from data.sample import Sample, TextTokenizer, Tokens

IMAGE_PREFIX = "Image: "
TEXT_PREFIX = "Image: N/A"


class LavinTemplate:
    """`[begin] Image: <slots> prompt response [end]`, and `Image: N/A` where there is no picture."""

    def __init__(self, tokenizer: TextTokenizer, image_slots: int) -> None:
        if image_slots < 1:
            raise ValueError(f"a picture needs at least one slot, not {image_slots}")
        self.tokenizer = tokenizer
        self.image_slots = image_slots
        self._image_head = (tokenizer.bos_id, *tokenizer.encode(IMAGE_PREFIX))
        self._text_head = (tokenizer.bos_id, *tokenizer.encode(TEXT_PREFIX))

    def tokens(self, sample: Sample, response: str | None = None) -> Tokens:
        """Ids of a sample with its own or another response; `""` leaves the response to be generated."""
        response = sample.response if response is None else response
        head = self._text_head
        slots: tuple[int, ...] = ()
        if sample.image is not None:
            first = len(self._image_head)
            slots = tuple(range(first, first + self.image_slots))
            head = self._image_head + (0,) * self.image_slots
        prompt = self.tokenizer.encode(sample.prompt)
        target: list[int] = []
        if response:
            target = [*self.tokenizer.encode(response, continues=True), self.tokenizer.eos_id]
        return Tokens(
            sample_id=sample.id,
            ids=(*head, *prompt, *target),
            supervised=(False,) * (len(head) + len(prompt)) + (True,) * len(target),
            slots=slots,
            modality=sample.modality,
            image=sample.image,
            head=len(head),
        )
