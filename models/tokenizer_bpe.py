"""Byte-pair tokenizers of two file formats: `tokenizer.json`, and the tiktoken ranks of LLaMA-3."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiktoken
import tokenizers

from models.errors import ModelError

# LLaMA-3's split of text into words (Meta's release), which no file of ranks holds.
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
_LLAMA3_SPECIALS = 256
# Ends of text by family, where no tokenizer_config.json names one.
_ENDS = ("</s>", "<|end_of_text|>", "<|endoftext|>")


class JsonTokenizer:
    """A `tokenizer.json`; `tokenizer_config.json` beside it may name the begin and end tokens."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self.path = path
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            layout = json.loads(content)
            begin = tokenizers.Tokenizer.from_str(json.dumps(layout)).encode("").ids
            added = layout.get("added_tokens") or []
            self._specials = {token["content"]: int(token["id"]) for token in added if token["special"]}
            # Without its special tokens the model sees them as the characters they are written with.
            layout["added_tokens"] = [token for token in added if not token["special"]]
            layout["post_processor"] = None
            self._model = tokenizers.Tokenizer.from_str(json.dumps(layout))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"tokenizer: {path} is not a tokenizer.json; fetch it again") from error
        self._model.no_truncation()
        self._model.no_padding()
        ids = [*self._model.get_vocab().values(), *self._specials.values()]
        self.vocab_size = max(ids) + 1
        self._special_ids = frozenset(self._specials.values())
        self._prefixed = _puts_a_space_first(layout)
        self._line_break: list[int] = self._model.encode("\n").ids
        config = _config_beside(path)
        self.bos_id = self._begin(config, begin[0] if begin else None)
        self.eos_id = self._end(config)

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, without begin or end; `continues` when it goes on where other text ended."""
        if continues and self._prefixed:
            # A line break never merges with what follows, so what stands behind it is the bare text.
            return list(self._model.encode("\n" + text).ids[len(self._line_break) :])
        return list(self._model.encode(text).ids) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens leave no trace."""
        return str(self._model.decode([i for i in ids if i not in self._special_ids]))

    def special(self, text: str) -> int:
        """The id of a special token by its name; a ModelError where there is none."""
        if text not in self._specials:
            raise ModelError(f"tokenizer: {self.path} has no special token {text!r}; choose another template")
        return self._specials[text]

    def _begin(self, config: dict[str, Any], by_file: int | None) -> int | None:
        """The file's own processing says whether a begin token is put, unless the config says otherwise."""
        if config.get("add_bos_token") is None:
            return by_file
        name = _name(config.get("bos_token"))
        return self.special(name) if config["add_bos_token"] and name else None

    def _end(self, config: dict[str, Any]) -> int:
        name = _name(config.get("eos_token"))
        names = [name] if name else [end for end in _ENDS if end in self._specials]
        if not names:
            raise ModelError(
                f"tokenizer: {self.path} has no end token; "
                "name its eos_token in a tokenizer_config.json beside it"
            )
        return self.special(names[0])


class RanksTokenizer:
    """Meta's LLaMA-3 `tokenizer.model`: base64 ranks, and 256 special tokens behind them."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self.path = path
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            rows = [line.split() for line in content.splitlines() if line]
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
        except (ValueError, binascii.Error) as error:
            raise ModelError(f"tokenizer: {path} is not a file of tiktoken ranks; fetch it again") from error
        if sorted(ranks.values()) != list(range(len(rows))) or any(
            bytes([b]) not in ranks for b in range(256)
        ):
            raise ModelError(f"tokenizer: {path} lacks ranks or bytes; the file is cut short, fetch it again")
        self._specials = {name: len(ranks) + i for i, name in enumerate(_llama3_names())}
        self._first_special = len(ranks)
        self._model = tiktoken.Encoding(
            path.name, pat_str=_LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=self._specials
        )
        self.vocab_size = len(ranks) + _LLAMA3_SPECIALS
        self.bos_id: int | None = self._specials["<|begin_of_text|>"]
        self.eos_id: int = self._specials["<|end_of_text|>"]

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, without begin or end; it is the same wherever the text stands."""
        return self._model.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens leave no trace."""
        return self._model.decode([i for i in ids if i < self._first_special])

    def special(self, text: str) -> int:
        """The id of a special token by its name; a ModelError where there is none."""
        if text not in self._specials:
            raise ModelError(f"tokenizer: {self.path} has no special token {text!r}; choose another template")
        return self._specials[text]


def _llama3_names() -> list[str]:
    """The names of the special tokens; those without a use are numbered in their order."""
    reserved = iter(range(_LLAMA3_SPECIALS))
    return [
        _LLAMA3_NAMED.get(i) or f"<|reserved_special_token_{next(reserved)}|>"
        for i in range(_LLAMA3_SPECIALS)
    ]


def _puts_a_space_first(layout: dict[str, Any]) -> bool:
    """Whether the first word of a text gets a space that the text does not have."""
    return any(
        part["type"] == "Prepend"
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        or bool(part.get("add_prefix_space", False))
        for name, kind in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"))
        if (whole := layout.get(name))
        for part in whole.get(kind, [whole])
    )


def _config_beside(path: Path) -> dict[str, Any]:
    file = path.parent / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"tokenizer: {file} is not JSON; fetch it again") from error
    if not isinstance(config, dict):
        raise ModelError(f"tokenizer: {file} is not a JSON object; fetch it again")
    return config


def _name(token: Any) -> str | None:
    """The name of a token that a config writes as text or as an object."""
    return token.get("content") if isinstance(token, dict) else token
