"""Judges: something that reads messages and replies with text, whatever stands behind it.

`eval.judge_http` asks an endpoint; here are the requests, the recorded replies for work without a network,
and a judge that is any function, such as a model of this project. Knows no benchmark and no network.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from eval.errors import EvalError
from eval.files import read_lines

LETTERS_PER_TOKEN = 4
TOKENS_PER_PICTURE = 800
"""Rough figures, for estimates of cost only."""


@dataclass(frozen=True)
class Request:
    """One question to a judge.

    Args:
        messages: Each a role and a text, as the chat interface of OpenAI has them.
        draw: Tells apart requests that are the same but are to be answered several times.
        id: Of the question it is about, for recorded replies and errors; no part of what is asked.
        pictures: Files shown with the last message; read only when they are sent, for they may be large.
    """

    messages: tuple[Mapping[str, str], ...]
    temperature: float
    max_tokens: int
    draw: int = 0
    id: str = ""
    pictures: tuple[Path, ...] = ()

    @property
    def text(self) -> str:
        """All that is said in it."""
        return "\n".join(message["content"] for message in self.messages)

    def digest(self, model: str) -> str:
        """What tells this request to this model from every other."""
        shown = [picture_digest(path) for path in self.pictures]
        asked = [model, list(self.messages), shown, self.temperature, self.max_tokens, self.draw]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def sent(self) -> list[dict[str, Any]]:
        """The messages as they are sent, with pictures as PNG in base64."""
        found: list[dict[str, Any]] = [dict(message) for message in self.messages]
        if self.pictures:
            text = {"type": "text", "text": found[-1]["content"]}
            found[-1]["content"] = [text, *map(_picture_part, self.pictures)]
        return found


def picture_digest(path: Path) -> str:
    """SHA-256 of a picture file."""
    try:
        state = path.stat()
    except OSError as error:
        raise EvalError(f"{path}: cannot be read: {error.strerror}; load the set again") from None
    return _digest(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed: int) -> str:
    """The digest of a file in the state that size and time tell."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _picture_part(path: Path) -> dict[str, Any]:
    from PIL import Image  # noqa: PLC0415

    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.convert("RGB").save(buffer, format="PNG")
    except OSError as error:
        raise EvalError(
            f"{path}: cannot be read as a picture: {error}; remove it and load the set again"
        ) from None
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}


class Judge(Protocol):
    """Whoever replies to requests."""

    @property
    def name(self) -> str:
        """What stands in the review files."""

    def ask(self, requests: Sequence[Request]) -> list[str]:
        """The replies, in the order of the requests."""

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What asking these requests would take, without asking."""


@dataclass(frozen=True)
class Estimate:
    """What asking takes.

    Args:
        calls: Requests that no earlier run has the reply to.
        known: Requests that cost nothing.
        tokens_in: Roughly, of the calls.
        tokens_out: At most, of the calls.
        cost: At the prices given; None without prices.
    """

    calls: int
    known: int
    tokens_in: int
    tokens_out: int
    cost: float | None = None

    def __str__(self) -> str:
        text = (
            f"{self.calls} calls to the judge ({self.known} replies are known already): about "
            f"{self.tokens_in:,} tokens in, at most {self.tokens_out:,} out"
        )
        return text if self.cost is None else f"{text}, at most about {self.cost:.2f} in the prices' currency"


@dataclass(frozen=True)
class Prices:
    """Per million tokens."""

    tokens_in: float
    tokens_out: float


def estimate(calls: Sequence[Request], known: int, prices: Prices | None = None) -> Estimate:
    """What the calls take."""
    into = sum(
        len(call.text) // LETTERS_PER_TOKEN + len(call.pictures) * TOKENS_PER_PICTURE + 8 for call in calls
    )
    out = sum(call.max_tokens for call in calls)
    cost = (into * prices.tokens_in + out * prices.tokens_out) / 1e6 if prices else None
    return Estimate(len(calls), known, into, out, cost)


class RecordedJudge:
    """Replies that were written down: JSON Lines with `reply` and `digest`, or with `reply` and `id`.

    A digest is that of `Request.digest` for the recorded model; an id is that of the question, and then
    several lines of one id are its replies in the order they are asked for.
    """

    def __init__(self, path: Path, model: str = "recorded") -> None:
        self.name = model
        self.path = path
        self._by_digest: dict[str, str] = {}
        self._by_id: dict[str, list[str]] = {}
        self._asked: dict[str, int] = {}
        for row in read_lines(path):
            if "digest" in row.values:
                self._by_digest[row.text("digest")] = row.text("reply")
            else:
                self._by_id.setdefault(row.id("id"), []).append(row.text("reply"))

    def ask(self, requests: Sequence[Request]) -> list[str]:
        """The recorded replies."""
        return [self._reply(request) for request in requests]

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """Nothing is ever called."""
        return estimate([], len(requests))

    def _reply(self, request: Request) -> str:
        digest = request.digest(self.name)
        if digest in self._by_digest:
            return self._by_digest[digest]
        replies = self._by_id.get(request.id, [])
        place = self._asked.get(request.id, 0)
        if place >= len(replies):
            raise EvalError(
                f"{self.path}: no recorded reply number {place + 1} for question {request.id!r} (digest "
                f"{digest[:12]}); record it, or judge with an endpoint"
            )
        self._asked[request.id] = place + 1
        return replies[place]


class FunctionJudge:
    """A judge that is a function from texts to answers, e.g. a model of this project."""

    def __init__(self, name: str, answer: Callable[[list[str]], Sequence[str]]) -> None:
        self.name = name
        self._answer = answer

    def ask(self, requests: Sequence[Request]) -> list[str]:
        """The function's answers; it sees the texts of all messages, one after the other."""
        if shown := [request.id for request in requests if request.pictures]:
            raise EvalError(
                f"{self.name}: this judge reads text only, and question {shown[0]!r} shows it a picture; "
                "judge with an endpoint"
            )
        replies = [str(reply) for reply in self._answer([request.text for request in requests])]
        if len(replies) != len(requests):
            raise EvalError(f"{self.name}: {len(replies)} answers to {len(requests)} requests; judge again")
        return replies

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """As many calls as requests; nothing is kept between runs."""
        return estimate(requests, 0)
