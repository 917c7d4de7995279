"""The model card that lies beside an adapter's tensors, made from what the folder itself records.

It is there to be published: places on one machine are told by their last name only, and whatever a folder
records, the card stays Markdown that says no more than that. Knows nothing of the files it is written to.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mma.config import plain

KINDS = {
    "MMA": (
        "Mixture-of-modality adapter",
        "Bottleneck adapters whose routes are weighted by what a sample carries (arXiv 2305.15023)",
    ),
    "BOTTLENECK": ("Bottleneck adapter", "Plain bottleneck adapters (arXiv 1902.00751)"),
    "LORA": ("LoRA adapter", "Low-rank updates of linear layers (arXiv 2106.09685)"),
    "PARTS": ("Tuned parts", "A projector and parts of the base tuned in full"),
}
PARTS = {"decoder": "base_digest", "tower": "tower_digest", "tokenizer": "tokenizer_digest"}
# What a description holds beside settings, and what a provenance holds beside what it is free to tell.
ABOUT = ("peft_type", "format_version", "base", *PARTS.values(), "sites", "routing_table", "provenance")
TOLD = ("recipe", "scores", "format", "captions", "data_digest", "data_licence")
DEEPEST = 32  # as in the folder: what is nested deeper is not shown

HUB_ID = re.compile(r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?(?<!\.git)", re.ASCII)
# An absolute path, or one from a home folder: as the whole of a text, and its folders within a text.
START = r"(?:(?:file://|~(?:[A-Za-z_][\w.-]*)?)?/|[A-Za-z]:[/\\])"
PLACE = re.compile(START + r"[/\\]*[^/\\].*")
FOLDERS = re.compile(rf"(?:(?<=[\s\"'`=(,:;\[|<>])|^){START}(?:[^\s/\\\"'`,;)\]|<>]+[/\\])+", re.MULTILINE)
LABEL = re.compile(r"[A-Za-z0-9][\w -]{0,60}", re.ASCII)
PLAIN_YAML = re.compile(r"[A-Za-z_](?:[\w ./-]*[\w./-])?", re.ASCII)
YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}

LOADING = """\
```python
from models.build import load  # in a checkout of mma

system = load("owner/name")  # this repository, or the path of a folder
```

It looks for the base under the names below; `load("owner/name", BaseSettings(...))` names another place. On
a model of your own, with `adapters` the `mma.Adapters` on it: `adapters.load_adapter("owner/name")`. Another
base than the digests say is refused."""
LOADING_WITH_PEFT = """
`peft.PeftModel.from_pretrained(base_model, "owner/name")` loads the LoRA as well, without what PEFT has no
place for (projector and modality tokens)."""


def portable(value: Any, depth: int = DEEPEST) -> Any:
    """A value of a JSON file without the places of one machine: of absolute paths the last name is left.

    What no JSON file can hold becomes text.
    """
    if isinstance(value, Mapping):
        inner = value.items() if depth else ()
        return {portable(str(key)): portable(x, depth - 1) for key, x in inner}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [portable(x, depth - 1) for x in value] if depth else []
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    if PLACE.fullmatch(text):  # the name may have spaces in it
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return without_folders(text)


def without_folders(text: str) -> str:
    """A text in which every absolute path is cut to its last name."""
    return FOLDERS.sub("", text)


def model_card(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The README of an adapter folder; any description gives one."""
    told: dict[str, Any] = portable(description)
    provenance = _table(told.get("provenance"))
    recipe = _table(provenance.get("recipe"))
    kind = str(told.get("peft_type"))
    title, what = KINDS.get(kind, ("Adapter", "An adapter of a kind this version does not know"))
    count = sum(tensor.numel() for tensor in tensors.values())
    size = sum(tensor.nbytes for tensor in tensors.values())
    settings = {key: x for key, x in told.items() if key not in ABOUT and x not in (None, "", [], {})}
    rest = {key: x for key, x in provenance.items() if key not in TOLD}
    lines = [
        *_front_matter(told.get("base")),
        f"# {title}",
        "",
        f"{what}: {count:,} trained parameters in {len(tensors)} tensors ({size:,} bytes). The frozen base "
        "they were trained on is not in this folder.",
        *_section("Scores", _scores(provenance.get("scores"), recipe)),
        *_section("How to load it", [LOADING, *([LOADING_WITH_PEFT] if kind == "LORA" else [])]),
        *_section("Its base", _base(told)),
        *_section("Settings", _rows(("setting", "value"), sorted(settings.items()))),
        *_section("Training data", _data(provenance, _table(recipe.get("data")))),
        *_section("Recipe", ["```yaml", *_yaml(recipe), "```"] if recipe else []),
        *_section("Where it comes from", _rows(("", ""), sorted(rest.items()))),
    ]
    return "\n".join([*lines, ""])


def _front_matter(base: Any) -> list[str]:
    """What the Hub reads. It names no licence: that of the adapter is for its publisher to choose."""
    lines = ["---", "library_name: mma", "tags: [mma, adapter, vision-language]"]
    decoder = base.get("decoder") if isinstance(base, dict) else base
    # A name that is a folder here is no repository, although it looks like one.
    if isinstance(decoder, str) and HUB_ID.fullmatch(decoder) and not os.path.exists(decoder):
        lines.append(f"base_model: {decoder}")
    return [*lines, "---", ""]


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A table with a name and values in each row; empty without rows."""
    if not rows:
        return []
    lines = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    return lines + [
        " | ".join(["", _label(name), *map(_inline, values), ""]).strip() for name, *values in rows
    ]


def _scores(scores: Any, recipe: Mapping[str, Any]) -> list[str]:
    if not isinstance(scores, dict) or not scores:
        return ["None are recorded."]
    names = [name for name in sorted(scores) if name not in ("questions", "split")]
    lines = ["| score | value |", "|---|---|"]
    for name in names:
        if not name.endswith("_interval"):
            lines.append(f"| {_label(name)} | {_score(name, scores)} |")
    if split := scores.get("split"):
        kept = _table(recipe.get("run")).get("keep_best")
        chosen = f", by whose {_inline(kept)} the run chooses the step it keeps" if kept else ""
        lines += ["", f"Measured on the split {_inline(split)}{chosen}. Brackets: 95 % interval (Wilson)."]
    return lines


def _score(name: str, scores: Mapping[str, Any]) -> str:
    """A score in words; shares of right answers in per cent, with interval and number of questions."""
    value, ends, questions = scores[name], scores.get(f"{name}_interval"), scores.get("questions")
    if not _is_number(value):
        return _inline(value)
    if name != "accuracy" or not 0 <= value <= 1:
        return f"{value:.4g}"
    sure = []
    if isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends)):
        sure.append(f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}")
    if type(questions) is int and _is_number(questions):
        sure.append(f"{questions:,} questions")
    return f"{100 * value:.1f} %" + (f" ({', '.join(sure)})" if sure else "")


def _base(told: Mapping[str, Any]) -> list[str]:
    """What the base was called, and the digests that say which it was."""
    base = told.get("base")
    named = base if isinstance(base, dict) else {"decoder": base}
    rows: list[tuple[str, ...]] = [
        (part, named.get(part) or "", told.get(digest) or "")
        for part, digest in PARTS.items()
        if named.get(part) or told.get(digest)
    ]
    rows += [(key, x, "") for key, x in sorted(named.items()) if key not in PARTS and x not in (None, "")]
    return _rows(("", "as recorded", "SHA-256"), rows)


def _data(provenance: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    rows = {
        "data set": data.get("root"),
        "split": data.get("train"),
        "SHA-256": provenance.get("data_digest"),
        "prompt format": provenance.get("format"),
        "captions": provenance.get("captions"),
        "licence of the data": provenance.get("data_licence"),
    }
    lines = _rows(("", ""), [(name, x) for name, x in rows.items() if x not in (None, "")])
    if provenance.get("data_licence"):
        lines += [
            "",
            "The data's licence may bind what is made from them. The adapter's own is not recorded.",
        ]
    return lines


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= 1e18


def _text(value: Any) -> str:
    """A value in one line of printable characters, and not a long one."""
    if isinstance(value, (list, dict)):
        return plain(_flow(value)[1:-1], 300)
    if isinstance(value, bool):
        return _flow(value)
    if isinstance(value, int) and value.bit_length() > 4096:  # Python does not write these as decimals
        return f"a number of {value.bit_length()} bits"
    return plain(value, 300)


def _label(name: str) -> str:
    """A name as it is where it is one."""
    return name if LABEL.fullmatch(name) else _inline(name)


def _inline(value: Any) -> str:
    """A value within a line or a cell: as code, where nothing in it can mean anything."""
    text = _text(value)
    if not text.strip():
        return ""
    if "|" in text or "`" in text:  # these end a cell, or the code
        return "".join(c if c.isalnum() or c in " .,/" else f"&#{ord(c)};" for c in text)
    return f"`{text}`"


def _yaml(table: Mapping[str, Any], indent: str = "") -> list[str]:
    """The lines of a table of plain values in YAML."""
    lines = []
    for key, x in table.items():
        if isinstance(x, dict) and x:
            lines += [f"{indent}{_flow(key)}:", *_yaml(x, indent + "  ")]
        else:
            lines.append(f"{indent}{_flow(key)}: {_flow(x)}")
    return lines


def _flow(value: Any) -> str:
    """A value of YAML in one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(x)}" for key, x in value.items()) + "}"
    if isinstance(value, float):
        shown = (
            repr(value) if math.isfinite(value) else {"inf": ".inf", "-inf": "-.inf"}.get(str(value), ".nan")
        )
        # Without a point YAML takes 1e-05 for a word.
        return shown if "." in shown else shown.replace("e", ".0e")
    if isinstance(value, str):
        if PLAIN_YAML.fullmatch(value) and value.lower() not in YAML_WORDS:
            return value
        quoted = json.dumps(value, ensure_ascii=False)
        # JSON writes some characters as two halves, of which YAML knows nothing.
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
    return _text(value) if type(value) is int else json.dumps(value)
