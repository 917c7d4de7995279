"""What to tell when the device's memory is full: which part of a step wanted more, and what would help."""

from __future__ import annotations

from traceback import walk_tb

from training.settings import OptimSettings

# Functions by which a part of a step is known in a traceback; what is computed again is the backward pass.
PARTS = {
    "backward": "the backward pass",
    "cross_entropy": "the logits of the loss",
    "project": "the pictures",
    "loss": "the forward pass",
    "step": "the optimizer",
}
LESS = {"none": "selective or full", "selective": "full"}


def out_of_memory(error: BaseException, step: int, optim: OptimSettings) -> str:
    """One line: the part that failed, and the settings that would help."""
    names = {frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)}
    part = next((told for name, told in PARTS.items() if name in names), "the step")
    ways = [f"lower optim.tokens_per_batch ({optim.tokens_per_batch})"]
    if optim.checkpointing in LESS:
        ways.append(f"set optim.checkpointing to {LESS[optim.checkpointing]}")
    ways.append("keep blocks on the host (run.offload), or begin anew on a quantised base (base.quantise)")
    return (
        f"the memory of the GPU is too small for {part} in step {step}: {', or '.join(ways)}; "
        "--plan tells what each would need"
    )
