"""What one example is: as text (`Sample`) and as token ids (`Tokens`).

Knows nothing of files, prompt formats or batches, and never opens a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class TextTokenizer(Protocol):
    """What the data packages need of a tokenizer."""

    bos_id: int
    eos_id: int

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, without begin or end; `continues` when it goes on where other text ended."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


@dataclass(frozen=True)
class Sample:
    """One example as text and paths, without tensors."""

    id: str
    prompt: str  # ends where the response begins, e.g. "...\nResponse:"
    response: str  # supervised text, e.g. "The answer is B."
    image: Path | None
    options: tuple[str, ...]  # one full candidate response per option
    gold: int | None  # index into options

    @property
    def modality(self) -> str:
        """What the sample carries: `image` with a picture, else `text`."""
        return "text" if self.image is None else "image"


@dataclass(frozen=True)
class Tokens:
    """One example as T token ids."""

    sample_id: str
    ids: tuple[int, ...]  # T; image slots hold id 0
    supervised: tuple[bool, ...]  # T; True where the token is a target
    slots: tuple[int, ...]  # positions filled by projected picture features, ascending
    modality: str
    image: Path | None
    head: int = 1  # tokens before the prompt (begin, prefix, slots), which no truncation may touch

    def __post_init__(self) -> None:
        where = f"tokens of sample {self.sample_id}"
        if len(self.ids) != len(self.supervised):
            raise ValueError(f"{where}: {len(self.ids)} ids but {len(self.supervised)} supervised marks")
        if self.supervised and self.supervised[0]:
            raise ValueError(f"{where}: the first token is supervised, but no token stands before it")
        if bool(self.slots) != (self.image is not None):
            raise ValueError(f"{where}: {len(self.slots)} image slots with picture {self.image}")
        if self.slots and not 0 <= self.slots[0] <= self.slots[-1] < len(self.ids):
            raise ValueError(f"{where}: image slots {self.slots} lie outside its {len(self.ids)} tokens")

    def __len__(self) -> int:
        return len(self.ids)
