"""The README of folders made for other software: what they hold, and what must stand before a prompt."""

from __future__ import annotations

from typing import Any


def export_card(title: str, base: Any, prompt_note: str, use: str) -> str:
    """Title, base, how a sample is laid out, and how the folder is loaded, as Markdown."""
    lines = [
        f"# {title}",
        "",
        "Exported from a mixture-of-modality adapter with its route weights folded in: there is no way back.",
        "",
        f"Base: {base}" if base else "The base was not recorded.",
        "",
        "## Load",
        "",
        "```python",
        use,
        "```",
        "",
        "## Before the prompt",
        "",
        prompt_note or "Whoever made the model did not say how its samples are laid out.",
    ]
    return "\n".join([*lines, ""])
