"""The README of folders made for other software: what they hold, and what must stand before a prompt.

Knows nothing of models; who owns one says how its samples are laid out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mma.card import KINDS, portable


def export_card(title: str, kind: str, base: Any, notes: Mapping[str, str], use: Sequence[str]) -> str:
    """Title, origin, base, how the folder is loaded and how a sample is laid out, as Markdown.

    Args:
        title: What the folder holds.
        kind: The `peft_type` of the adapter it was made from.
        base: What was recorded of the base.
        notes: How a sample is laid out, by the modalities that the folder is for.
        use: Lines of Python that load it.
    """
    named = portable(base)
    told = named if isinstance(named, dict) else {"decoder": named}
    lines = [
        f"# {title} for {' or '.join(f'`{modality}`' for modality in notes)}",
        "",
        f"Exported from: {KINDS[kind][0]}. For samples as below, the decoder computes what it computes with "
        "that adapter. Image tower, projector and other modalities are not in this folder, and the adapter "
        "cannot be made from it again: keep the adapter's own folder.",
        "",
        "## The base it was made on",
        "",
        *[f"- {part}: `{name}`" for part, name in told.items() if name not in (None, "")],
        "",
        "## How to load it",
        "",
        "```python",
        *use,
        "```",
    ]
    for modality, note in notes.items():
        lines += ["", f"## How a sample with `{modality}` is laid out", ""]
        lines.append(note or "Whoever made the model did not say.")
    return "\n".join([*lines, ""])
