"""Settings of the optimisation and of the run folder; they know nothing of models or data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from training.errors import RunError

# 1: a higher value is better; -1: a lower one is.
METRICS = {"loss": -1, "accuracy": 1}


@dataclass(frozen=True)
class OptimSettings:
    """How the trained parameters are moved (AdamW, linear warmup, then a schedule)"""

    lr: float = 1.125e-3
    """learning rate at the end of the warmup"""
    parts: dict[str, float] = field(default_factory=dict)
    """learning rate of the parts that have one of their own, such as {projector: 1e-3}; 0 keeps a part as it
    is: it is saved with the others, but not trained"""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """how the learning rate falls after the warmup"""
    min_lr: float = 0.0
    """learning rate that the schedule ends at (constant never falls)"""
    epochs: int = 20
    """how often every sample is seen"""
    max_steps: int | None = None
    """number of optimizer steps, instead of epochs"""
    batch: int = 32
    """samples per optimizer step"""
    tokens_per_batch: int = 4096
    """tokens that go through the model at once: a matter of memory and speed, not of the result"""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """what is computed again in the backward pass instead of being kept: nothing, the MLP of each block, or
    whole blocks; less memory for more time, the same result (see --plan)"""
    warmup: float = 2.0
    """length of the warmup in epochs, may be a fraction"""
    warmup_steps: int | None = None
    """length of the warmup in steps, instead of epochs"""
    warmup_ratio: float | None = None
    """length of the warmup as a share of all steps, instead of epochs"""
    weight_decay: float = 0.02
    """decay of parameters of two or more dimensions"""
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = "adamw"
    """AdamW, its averages in fp32, or in 8 bits (bitsandbytes); paged ones leave a full GPU for the host"""
    betas: tuple[float, float] = (0.9, 0.95)
    """decay rates of AdamW's two averages"""
    clip: float | None = None
    """largest norm of the gradient; null does not clip"""
    ema: float | None = None
    """decay of a moving average of the trained parameters, such as 0.999, which is then what is validated and
    saved; null saves the parameters themselves"""
    seed: int = 0
    """decides the start of the trained parameters, the order of the data and the dropout"""
    threads: int | None = None
    """CPU threads; null leaves the choice to PyTorch (a resumed run uses what the run began with)"""

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "batch", "tokens_per_batch"):
            _check("optim", name, getattr(self, name), "at least 1", lambda value: value >= 1)
        # More threads than a machine allows would end the process without a word.
        _check("optim", "threads", self.threads, "1 to 1024", lambda value: 1 <= value <= 1024)
        _check("optim", "seed", self.seed, "at least 0 and below 2^63", lambda value: 0 <= value < 2**63)
        for name in ("warmup", "warmup_steps", "weight_decay", "min_lr"):
            _check("optim", name, getattr(self, name), "0 or more", lambda value: value >= 0)
        _check("optim", "ema", self.ema, "more than 0 and below 1", lambda value: 0 < value < 1)
        for name in ("lr", "clip"):
            _check("optim", name, getattr(self, name), "more than 0", lambda value: value > 0)
        for beta in self.betas:
            _check(
                "optim", "betas", beta, "two numbers of at least 0 and below 1", lambda value: 0 <= value < 1
            )
        _check(
            "optim", "warmup_ratio", self.warmup_ratio, "0 or more and below 1", lambda value: 0 <= value < 1
        )
        for part, rate in self.parts.items():
            _check("optim", f"parts.{part}", rate, "0 or more", lambda value: value >= 0)
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise RunError("optim.warmup_steps and optim.warmup_ratio are both set: leave one of them out")
        if self.min_lr > self.lr:
            raise RunError(f"optim.min_lr is {self.min_lr:g}, above optim.lr of {self.lr:g}: lower it")

    def steps(self, steps_per_epoch: int) -> int:
        """Number of optimizer steps of the whole run."""
        return self.max_steps if self.max_steps is not None else self.epochs * steps_per_epoch

    def warmup_length(self, steps_per_epoch: int) -> int:
        """Number of steps in which the learning rate rises."""
        steps = self.steps(steps_per_epoch)
        if self.warmup_steps is not None:
            setting, length = "optim.warmup_steps", self.warmup_steps
        elif self.warmup_ratio is not None:
            setting, length = "optim.warmup_ratio", round(self.warmup_ratio * steps)
        else:
            setting, length = "optim.warmup", round(self.warmup * steps_per_epoch)
        if length >= steps:
            raise RunError(f"{setting} gives {length} steps of warmup in a run of {steps} steps: shorten it")
        return length


@dataclass(frozen=True)
class RunSettings:
    """Where the run is written, and when it is validated and saved"""

    folder: Path
    """new folder for everything that the run writes"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute; auto takes a GPU if there is one"""
    save_every: int = 0
    """steps between two checkpoints; 0 saves at the end of every epoch"""
    keep: int = 2
    """number of periodic checkpoints to keep, beside the best one"""
    validate_every: int = 0
    """steps between two validations; 0 validates at the end of every epoch"""
    keep_best: Literal["loss", "accuracy"] = "loss"
    """score of the validation that decides which checkpoint becomes the adapter"""
    patience: int | None = None
    """stop after so many validations without a better score; null never stops early"""
    shard: bool = False
    """shard the frozen decoder over the processes (FSDP2), for one that does not fit on a GPU; every process
    then takes part in validations"""
    compile: bool = False
    """compile the blocks of decoder and tower (torch.compile): the first steps take minutes, others less"""
    split: bool = False
    """split every layer of the decoder over the processes (tensor parallel, fairscale's layers), which then
    compute each batch together"""
    offload: int = 0
    """blocks of the decoder whose weights stay in the host's memory and come when they compute, for a GPU
    that is smaller than the base"""

    def __post_init__(self) -> None:
        for name in ("save_every", "validate_every", "offload"):
            _check("run", name, getattr(self, name), "0 or more", lambda value: value >= 0)
        if self.shard and self.split:
            raise RunError("run.shard and run.split are both set: turn off one of the two")
        if self.compile and (self.shard or self.split):
            raise RunError("run.compile is set with run.shard or run.split: compile whole decoders only")
        if self.offload and (self.shard or self.split or self.compile):
            raise RunError("run.offload is set with run.shard, run.split or run.compile: turn one off")
        for name in ("keep", "patience"):
            _check("run", name, getattr(self, name), "at least 1", lambda value: value >= 1)


def _check(section: str, name: str, value: float | None, wanted: str, holds: Callable[[float], bool]) -> None:
    if value is not None and not (math.isfinite(value) and holds(value)):
        raise RunError(f"{section}.{name} is {value}: it must be {wanted}")
