"""Replies of a judge on disk: one file for each exact request, so that nothing is ever asked twice.

Knows no network. A file is written whole or not at all, so an evaluation may be killed at any time.
"""

from __future__ import annotations

import json
from pathlib import Path

from eval.files import read_object, row_of
from eval.judge import Request, picture_digest
from eval.results import write_text


class Cache:
    """The replies of one model in one folder; the folder may hold those of others too."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        self.model = model

    def path(self, request: Request) -> Path:
        """The file of a request."""
        digest = request.digest(self.model)
        return self.folder / digest[:2] / f"{digest}.json"

    def get(self, request: Request) -> str | None:
        """The reply that is kept, or None."""
        path = self.path(request)
        if not path.exists():
            return None
        return row_of(read_object(path), f"{path}: a kept reply of the judge").text("reply")

    def put(self, request: Request, reply: str) -> None:
        """Keep a reply and what was asked; of a picture its digest."""
        content = {
            "model": self.model,
            "id": request.id,
            "messages": list(request.messages),
            "pictures": [picture_digest(path) for path in request.pictures],
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "draw": request.draw,
            "reply": reply,
        }
        write_text(self.path(request), json.dumps(content, ensure_ascii=False, indent=1) + "\n")
