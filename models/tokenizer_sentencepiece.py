"""Text to token ids with a SentencePiece model (the tokenizer of LLaMA 1 and 2 and of the mini base)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from models.errors import ModelError


class SentencePieceTokenizer:
    """A SentencePiece model with begin and end ids; never pads with a vocabulary id."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ModelError(f"tokenizer: there is no file {path}; name a SentencePiece tokenizer.model")
        content = path.read_bytes()
        self.model = SentencePieceProcessor()
        try:
            self.model.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise ModelError(f"tokenizer: {path} is not a SentencePiece model; fetch it again") from error
        self.path = path
        self.digest = hashlib.sha256(content).hexdigest()
        self.vocab_size: int = self.model.vocab_size()
        self.bos_id: int = self.model.bos_id()
        self.eos_id: int = self.model.eos_id()
        if min(self.bos_id, self.eos_id) < 0:
            raise ModelError(f"tokenizer: {path} lacks the begin or end piece that a decoder needs")
        # What encoding puts before the first character: a dummy space, in most models.
        self._line_break: list[int] = self.model.encode("\n")

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, without begin or end; `continues` when it goes on without a space before it."""
        if not continues:
            return list(self.model.encode(text))
        # A line break never merges with what follows, so what stands behind it is the bare text.
        return list(self.model.encode("\n" + text)[len(self._line_break) :])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; begin and end ids leave no trace."""
        return str(self.model.decode(list(ids)))

    def special(self, text: str) -> int:
        """The id of a control piece by its name; a ModelError where there is none."""
        index = int(self.model.piece_to_id(text))
        if not self.model.is_control(index):
            raise ModelError(f"tokenizer: {self.path} has no special token {text!r}; choose another template")
        return index
