"""The loss curve of a run as a picture."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from training.monitor import read_metrics
from training.run_state import replace_file


def draw_loss(folder: Path) -> Path:
    """Draws the training and validation loss of a run to loss.png."""
    records = read_metrics(folder)
    train = [(record["step"], record["loss"]) for record in records if "loss" in record]
    validation = [(r["step"], r["validation"]["loss"]) for r in records if "loss" in r.get("validation", {})]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss per supervised token")
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training, each step")
        axes.plot(steps, _smooth(losses), color="tab:blue", label="training, running mean")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="tab:orange", marker="o", label="validation")
    if train or validation:
        axes.legend()
    axes.grid(alpha=0.3)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    replace_file(folder / "loss.png", drawn.getvalue())
    return folder / "loss.png"


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Mean of the latest tenth of the values (at most 50)."""
    window = max(1, min(50, len(values) // 10))
    return [
        sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - window) : i + 1])
    ]
