"""A judge behind any endpoint that speaks the chat interface of OpenAI: POST URL/chat/completions.

Replies are kept (`eval.judge_cache`); what is not known yet is asked over a few connections at once, and
asked again after errors that pass. The key comes from an environment variable and is never shown. Knows no
benchmark.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.errors import EvalError
from eval.judge import Estimate, Prices, Request, estimate
from eval.judge_cache import Cache

LONGEST_WAIT = 120.0  # seconds; an endpoint may ask for more, and gets it up to ten times this


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is, and how patient we are with it.

    Args:
        url: Up to and without `/chat/completions`, e.g. "http://localhost:8000/v1".
        model: As the endpoint names it.
        key: Environment variable with the key; an endpoint without keys works with the variable unset.
        cache: Folder for the replies.
        timeout: Seconds for one call.
        attempts: Calls for one request before giving up.
        connections: Calls under way at once.
        first_wait: Seconds before the second attempt; doubled for each further one.
        prices: For the estimate.
    """

    url: str
    model: str
    cache: Path
    key: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    attempts: int = 6
    connections: int = 4
    first_wait: float = 1.0
    prices: Prices | None = None


class _Passing(Exception):
    """An error that may be gone at the next attempt, and how long the endpoint asks us to wait."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key must not follow to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def show(found: Estimate) -> None:
    """Print what is about to be asked."""
    if found.calls:
        print(found, file=sys.stderr, flush=True)


class HttpJudge:
    """Asks an endpoint what it has not been asked before."""

    def __init__(
        self,
        endpoint: Endpoint,
        announce: Callable[[Estimate], None] = show,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        if not endpoint.url.startswith(("http://", "https://")):
            raise EvalError(
                f"{endpoint.url!r}: not an address of a judge; it begins with http:// or https://"
            )
        self.endpoint = endpoint
        self.name = endpoint.model
        self._cache = Cache(endpoint.cache, endpoint.model)
        self._announce = announce
        self._opener = urllib.request.build_opener(_NoRedirect())
        self._key = _key(endpoint.key)
        self._stop = threading.Event()
        self._sleep = (
            self._stop.wait if sleep is None else sleep
        )  # a wait ends at once when another call gives up

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What asking takes, now; nothing is asked."""
        open_ = self._open(requests)
        return estimate(list(open_.values()), len(requests) - len(open_), self.endpoint.prices)

    def ask(self, requests: Sequence[Request]) -> list[str]:
        """The replies in the order of the requests; each is kept as soon as it is there."""
        open_ = list(self._open(requests).values())
        self._announce(estimate(open_, len(requests) - len(open_), self.endpoint.prices))
        self._stop.clear()
        with ThreadPoolExecutor(self.endpoint.connections) as pool:
            calls = [pool.submit(self._one, request) for request in open_]
            try:
                _finish(calls)
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
        return [self._known(request) for request in requests]

    def _open(self, requests: Sequence[Request]) -> dict[str, Request]:
        """The requests without a reply, each once."""
        found = {request.digest(self.name): request for request in requests}
        return {digest: request for digest, request in found.items() if self._cache.get(request) is None}

    def _known(self, request: Request) -> str:
        reply = self._cache.get(request)
        if reply is None:
            raise EvalError(f"{self._cache.path(request)}: vanished while judging; judge again")
        return reply

    def _one(self, request: Request) -> None:
        jitter = random.Random(request.digest(self.name))
        for attempt in range(1, self.endpoint.attempts + 1):
            try:
                self._cache.put(request, self._reply(request))
                return
            except _Passing as error:
                if attempt == self.endpoint.attempts:
                    raise EvalError(
                        f"{self.endpoint.url}: no reply to question {request.id!r} after {attempt} attempts "
                        f"(the last: {error}); the replies so far are kept, so judge again later"
                    ) from None
                longest = min(LONGEST_WAIT, self.endpoint.first_wait * 2 ** (attempt - 1))
                # half of the wait is random, so that the connections do not all come back at once
                self._pause(max(longest * (0.5 + jitter.random() / 2), error.wait))

    def _pause(self, seconds: float) -> None:
        self._sleep(seconds)
        if self._stop.is_set():
            raise EvalError(f"{self.endpoint.url}: judging was given up; the replies so far are kept")

    def _reply(self, request: Request) -> str:
        """One call."""
        body = {
            "model": self.endpoint.model,
            "messages": request.sent(),
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        address = self.endpoint.url.rstrip("/") + "/chat/completions"
        call = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with self._opener.open(call, timeout=self.endpoint.timeout) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _Passing(f"no connection: {str(reason) or type(reason).__name__}") from None
        return _content(content)

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP error means."""
        status, url = error.code, self.endpoint.url
        if status in (408, 409, 425, 429) or status >= 500:
            return _Passing(f"HTTP status {status}", _retry_after(error.headers.get("Retry-After")))
        if status in (401, 403):
            return EvalError(
                f"{url}: the judge refuses the key (HTTP status {status}); put a valid one into the "
                f"environment variable {self.endpoint.key}"
            )
        if status == 404:
            return EvalError(
                f"{url}: nothing there answers for the model {self.endpoint.model!r} (HTTP status 404); "
                "check the address and the model's name"
            )
        try:
            reason = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
        except (OSError, http.client.HTTPException):
            reason = ""
        if self._key:
            reason = reason.replace(self._key, "(key)")
        return EvalError(
            f"{url}: the judge refuses the request (HTTP status {status}): {reason or 'no reason given'}"
        )


def _finish(calls: Sequence[Future[None]]) -> None:
    """Wait for the calls; the first error ends it."""
    with tqdm(total=len(calls), unit="reply", delay=2, leave=False) as bar:
        for call in as_completed(calls):
            call.result()
            bar.update()


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise EvalError(
            f"the environment variable {variable} holds no key: some of its characters cannot be sent"
        )
    return key


def _retry_after(value: str | None) -> float:
    """The seconds that a Retry-After header asks for: a number, or a date."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), 10 * LONGEST_WAIT)


def _content(body: bytes) -> str:
    """The text of a reply."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _Passing("a malformed reply") from None
    if not isinstance(content, str):
        raise _Passing("a reply without text")
    return content
