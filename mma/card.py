"""The model card that lies beside an adapter's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def model_card(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """A short README for an adapter folder, from what the folder itself records."""
    count = sum(tensor.numel() for tensor in tensors.values())
    provenance = description.get("provenance", {})
    lines = [
        "---",
        "library_name: mma",
        "tags: [mma, adapter, vision-language]",
        "---",
        "",
        "# Mixture-of-modality adapter",
        "",
        f"{count:,} trained parameters in {len(tensors)} tensors.",
        "",
        "| setting | value |",
        "|---|---|",
    ]
    shown = (
        "r",
        "routes",
        "groups",
        "temperature",
        "scale",
        "placement",
        "tower",
        "tower_placement",
        "modalities",
        "template",
    )
    lines += [_row(name, description[name]) for name in shown if name in description]
    for title, content in (("Its base", description.get("base")), ("Where it comes from", provenance)):
        if isinstance(content, Mapping) and content:
            lines += ["", f"## {title}", "", "| | |", "|---|---|"]
            lines += [_row(name, value) for name, value in sorted(content.items())]
    return "\n".join([*lines, ""])


def _row(name: str, value: object) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"| {name} | {shown} |".replace("\n", " ")
