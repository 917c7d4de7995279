"""Four systems on the embedded base, tuned on the mini world and compared: accuracy, parameters, seconds.

    python -m assets.mini.systems runs/systems [RECIPE ...]      about ten minutes on two cores

LaVIN (mixture-of-modality adapters), LLaVA (LoRA), TinyLLaVA (whole decoder) and LLaVA-NeXT (any resolution,
decoder and tower), each by its recipe. Writes results.json and results.md, the table of docs/results.md.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import train
from data.commands import print_error
from data.mini.generate import generate
from eval.scores import Scores
from eval.settings import Settings
from eval.task import evaluate
from finetune.recipe import read_stages
from models.build import load

RECIPES = ("mini-world", "mini-llava", "mini-tinyllava", "mini-llava-next")
DATA = Path("runs/mini-data")  # where the recipes look for it


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Tunes one system and scores it, with pictures and with noise in their place."""
    file, run = Path(f"recipes/{name}.yaml"), folder / name
    shutil.rmtree(run, ignore_errors=True)
    began = time.perf_counter()
    if train.main([str(file), "--run.folder", str(run)]):
        raise RuntimeError(f"{file} cannot be run")
    seconds = time.perf_counter() - began
    last = list(read_stages(file))[-1]
    adapter = run / last / "adapter"
    test = Settings(data=DATA, split="test", adapters=(adapter,))
    scores = {"seen": evaluate(test).scores, "blind": evaluate(replace(test, blind=True)).scores}
    tensors = load(adapter).model.adapters.trainable_parameters().values()
    return {
        "trained_parameters": sum(tensor.numel() for tensor in tensors),
        "seconds": round(seconds),
        **{how: {kind: _share(found, kind) for kind in ("IMG", "NO")} for how, found in scores.items()},
    }


def _share(scores: Scores, category: str) -> dict[str, Any]:
    return asdict(scores.categories[category])


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each system."""

    def percent(share: dict[str, Any]) -> str:
        value, low, high = (share[key] * 100 for key in ("value", "low", "high"))
        return f"{value:.1f} % ({low:.1f} to {high:.1f})"

    lines = [
        "| recipe | trained parameters | seconds | with pictures | noise for pictures | words alone |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        cells = (percent(found["seen"]["IMG"]), percent(found["blind"]["IMG"]), percent(found["seen"]["NO"]))
        lines.append(
            f"| `{name}` | {found['trained_parameters']:,} | {found['seconds']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def main(folder: Path, names: Sequence[str] = RECIPES) -> int:
    """Runs the systems one after the other; what was measured before is kept."""
    generate(DATA)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in names or RECIPES:
        print(f"\n== {name}", flush=True)
        results[name] = measure(name, folder)
        file.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{table(results)}")
    (folder / "results.md").write_text(table(results) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
    except train.USER_ERRORS as error:
        print_error(error)
        sys.exit(2)
