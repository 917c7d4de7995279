"""Text to token ids by the file a decoder was trained with: SentencePiece, `tokenizer.json`, tiktoken ranks.

Text never gives the id of a special token for looking like one; such ids come from `special` alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from models.errors import ModelError
from models.tokenizer_bpe import JsonTokenizer, RanksTokenizer
from models.tokenizer_sentencepiece import SentencePieceTokenizer

__all__ = ["JsonTokenizer", "RanksTokenizer", "SentencePieceTokenizer", "Tokenizer", "load_tokenizer"]

NAMES = ("tokenizer.model", "tokenizer.json")
_RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")


class Tokenizer(Protocol):
    """What a system needs of a tokenizer of any kind."""

    path: Path
    digest: str  # SHA-256 of the file
    vocab_size: int  # one more than the highest id it can give, special tokens included
    bos_id: int | None  # what stands before every text; None: the family puts nothing there
    eos_id: int

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, without begin or end; `continues` when it goes on where other text ended."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens leave no trace."""
        ...

    def special(self, text: str) -> int:
        """The id of a special token by its name; a ModelError where there is none."""
        ...


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file, or of a folder with one of `NAMES`; its kind is told by its content."""
    file = path
    if path.is_dir():
        found = [path / name for name in NAMES if (path / name).is_file()]
        if not found:
            raise ModelError(
                f"tokenizer: the folder {path} has none of {', '.join(NAMES)}; fetch one of them"
            )
        file = found[0]
    if not file.is_file():
        raise ModelError(f"tokenizer: there is no file {file}; name a {' or '.join(NAMES)}")
    with file.open("rb") as opened:
        start = opened.read(200)
    if start.lstrip().startswith(b"{"):
        return JsonTokenizer(file)
    if _RANK.match(start):
        return RanksTokenizer(file)
    return SentencePieceTokenizer(file)
