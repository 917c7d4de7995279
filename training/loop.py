"""The training loop: steps, validations, checkpoints, and an end that loses nothing.

Gets the model and its batches as arguments; knows nothing of pictures, prompts or adapters.
"""

from __future__ import annotations

import errno
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mma.errors import AdapterError
from training.batches import Pass, passes, prefetched
from training.curve import draw_loss
from training.ema import MovingAverage
from training.errors import RunError
from training.monitor import Monitor, Silent
from training.optimizer import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    moving,
    optimizer_tensors,
    set_rate,
)
from training.out_of_memory import out_of_memory
from training.parallel import PeerStopped, talking
from training.run_state import (
    Progress,
    RunState,
    load_trainables,
    locked,
    newest_state,
    read_state,
    remove_folder,
    remove_leftovers,
    step_name,
    write_state,
)
from training.settings import METRICS, OptimSettings, RunSettings
from training.signals import Interrupted, StopSignals
from training.step import train_step
from training.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    adapter: Path | None  # the final adapter, once the run is finished
    signal: int | None  # the signal that stopped it


def train(task: Task, optim: OptimSettings, run: RunSettings) -> Outcome:
    """Trains from where `run.folder` stands (from the start in a new one) to the end or to a stop signal."""
    with locked(run.folder) if task.world.first else nullcontext():
        trainer = Trainer(task, optim, run)
        with trainer.rescued():
            return trainer.go()


class Trainer:
    """One run: its settings, its tensors and its progress."""

    def __init__(self, task: Task, optim: OptimSettings, run: RunSettings) -> None:
        self.task, self.optim, self.run = task, optim, run
        self.steps = optim.steps(task.steps_per_epoch)
        self.warmup = optim.warmup_length(task.steps_per_epoch)
        self.save_every = run.save_every or task.steps_per_epoch
        self.validate_every = run.validate_every or task.steps_per_epoch
        self.states, self.checkpoints = run.folder / "state", run.folder / "checkpoints"
        self.world = task.world
        # A sharded base computes only where all processes do: they validate and save together.
        self.together = (run.shard or run.split) and task.world.size > 1
        self.moving = moving(task.trainables, optim, task.part_of)
        self.optimizer = make_optimizer(self.moving, optim, task.part_of)
        self.world.agree_on(task.trainables)
        self.ema = MovingAverage(task.trainables, optim.ema) if optim.ema is not None else None
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.stopped: int | None = None  # the signal that all processes have agreed to stop for
        if optim.threads is not None:
            torch.set_num_threads(optim.threads)
        if run.patience is not None and task.validate is None:
            raise RunError("run.patience is set, but there is no validation: name a split for it")
        # What a killed run left half-written.
        for folder in (run.folder, self.states, self.checkpoints):
            if self.world.first:
                remove_leftovers(folder)
        self.world.wait()
        self._resume()
        self.world.wait()  # the state is read before the first process may write the next one

    def go(self) -> Outcome:
        """Runs to the end or to a stop signal; says how far it came."""
        progress = self.progress
        monitor = self._monitor()
        with closing(monitor), StopSignals() as signals:
            if progress.step:  # what a kill just behind the last state has prevented
                if self.world.tell(not self._checkpoint().exists()):
                    self._write_checkpoint()
                self._prune()
            if not progress.finished:
                # A validation is given up when a stop signal comes: a resumed run repeats it.
                with suppress(Interrupted):
                    self._steps(monitor, signals)
                progress.finished = self._complete()
                self._save(monitor)
        adapter = self._finish() if progress.finished else None
        self.world.wait()
        return Outcome(progress.step, adapter, None if progress.finished else self.stopped)

    def _monitor(self) -> Monitor | Silent:
        """Who reports; only the first process does."""
        if not self.world.first:
            return Silent()
        return Monitor(
            self.run.folder,
            step=self.progress.step,
            steps=self.steps,
            metrics_bytes=self.progress.metrics_bytes,
            device=self.task.device,
        )

    def _stopping(self, signals: StopSignals) -> bool:
        """Whether a signal has reached any process; all of them are told the same."""
        received = [number for number in self.world.gather(signals.received) if number is not None]
        self.stopped = received[0] if received else None
        return bool(received)

    @contextmanager
    def rescued(self) -> Iterator[None]:
        """Turns a failure to write into one line that says what is kept."""
        try:
            yield
        except PeerStopped as error:
            raise RunError(f"{error} in step {self.progress.step + 1}; {self._kept()}") from error
        except AdapterError as error:
            raise RunError(f"{error}; {self._kept()}") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise RunError(f"the disk is full: free some space; {self._kept()}") from error

    def _steps(self, monitor: Monitor | Silent, signals: StopSignals) -> None:
        """Steps until the run is complete or a stop signal came."""
        progress = self.progress
        if self._validate(monitor, signals):
            self._save(monitor)
        with closing(prefetched(self._own, progress.step, self.steps)) as batches:
            monitor.resume()
            while not self._complete():
                own = next(batches)
                # Here all processes wait for each other, whoever's batches took longest.
                if self._stopping(signals):
                    break
                self._step(own, monitor)
                improved = self._validate(monitor, signals)
                if (improved or progress.step % self.save_every == 0) and not self._complete():
                    self._save(monitor)
                monitor.resume()

    def _own(self, step: int) -> list[Pass]:
        """What this process computes of a step."""
        batches = self.task.batches_of_step(step)
        return passes(batches, seed=self.optim.seed, step=step, world=self.world)

    def _step(self, own: Sequence[Pass], monitor: Monitor | Silent) -> None:
        """One optimizer step."""
        index, optim = self.progress.step, self.optim
        rate = learning_rate(
            index,
            peak=optim.lr,
            floor=optim.min_lr,
            warmup=self.warmup,
            steps=self.steps,
            schedule=optim.schedule,
        )
        set_rate(self.optimizer, rate)
        self.task.model.train()
        try:
            with self._talking():
                result = train_step(
                    self.task.model,
                    self.moving,
                    self.optimizer,
                    own,
                    step=index + 1,
                    device=self.task.device,
                    clip=optim.clip,
                    world=self.world,
                )
        except PeerStopped:
            raise
        except RunError as error:
            raise RunError(f"{error}; {self._kept()}") from error
        except torch.OutOfMemoryError as error:
            raise RunError(f"{out_of_memory(error, index + 1, optim)}; {self._kept()}") from error
        if self.ema is not None:
            self.ema.update(self.task.trainables, index)
        self.progress.step = index + 1
        monitor.step(index + 1, (index + 1) / self.task.steps_per_epoch, rate, result)

    def _complete(self) -> bool:
        """Whether nothing is left to do, validation of the last step included."""
        patience = self.run.patience
        if patience is not None and self.progress.stale >= patience:
            return True
        return self.progress.step >= self.steps and not self._validation_due()

    def _validation_due(self) -> bool:
        step = self.progress.step
        if self.task.validate is None or step in (0, self.progress.validated):
            return False
        return step % self.validate_every == 0 or step >= self.steps

    def _validate(self, monitor: Monitor | Silent, signals: StopSignals) -> bool:
        """Validates if it is time to; says whether the trained tensors are the best so far."""
        if not self._validation_due():
            return False
        progress, name = self.progress, self.run.keep_best
        scores = self._scores(signals)
        if name not in scores:
            raise RunError(f"run.keep_best is '{name}', but the validation has only {', '.join(scores)}")
        if bad := [key for key, score in scores.items() if not math.isfinite(score)]:
            raise RunError(
                f"validation {bad[0]} after step {progress.step} is {scores[bad[0]]}; {self._kept()}"
            )
        progress.validated, progress.scores = progress.step, scores
        monitor.validation(progress.step, scores)
        sign = METRICS[name]
        if progress.best_scores is not None and sign * scores[name] <= sign * progress.best_scores[name]:
            progress.stale += 1
            return False
        progress.best_step, progress.best_scores, progress.stale = progress.step, scores, 0
        self.best = {key: tensor.detach().cpu().clone() for key, tensor in self._result().items()}
        return True

    def _scores(self, signals: StopSignals) -> dict[str, float]:
        """What the first process validates, in all of them; raises Interrupted in all when it was stopped."""
        assert self.task.validate is not None, "a validation is due only where there is one"
        scores = None
        if self.together:  # not interruptible: the others would wait for who was stopped
            with self._averaged(), self._talking():
                self.task.model.eval()
                with torch.no_grad():
                    scores = self.task.validate()
        elif self.world.first:
            with suppress(Interrupted), self._averaged(), signals.interruptible():
                self.task.model.eval()
                with torch.no_grad():
                    scores = self.task.validate()
        scores = self.world.tell(scores)
        if scores is None:
            self._stopping(signals)
            raise Interrupted
        return scores

    def _talking(self) -> AbstractContextManager[None]:
        """Where a pass through the model may wait for other processes: a sharded base does."""
        return talking() if self.together else nullcontext()

    def _result(self) -> Mapping[str, Tensor]:
        """What is validated and saved as the adapter: the trained tensors, or their moving average."""
        return self.task.trainables if self.ema is None else self.ema.tensors

    def _averaged(self) -> AbstractContextManager[None]:
        """Inside the block the trained parameters hold the result."""
        return nullcontext() if self.ema is None else self.ema.applied(self.task.trainables)

    def _save(self, monitor: Monitor | Silent) -> None:
        """Writes the run state, then the adapter folder of this step; resuming writes a missing one."""
        if self.world.first:
            self._write_state(monitor)
        if self.progress.step:  # at step 0 nothing is trained yet
            self._write_checkpoint()
            self._prune()

    def _write_state(self, monitor: Monitor | Silent) -> None:
        progress = self.progress
        progress.saves += 1
        progress.metrics_bytes = monitor.sync()
        tensors: dict[str, dict[str, Tensor]] = {
            "trainables": dict(self.task.trainables),
            "optimizer": optimizer_tensors(self.moving, self.optimizer),
            "best": self.best,
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.tensors
        write_state(self.states, RunState(progress, tensors, self._about()))

    def _checkpoint(self) -> Path:
        return self.checkpoints / step_name(self.progress.step)

    def _write_checkpoint(self) -> None:
        progress = self.progress
        scores = progress.scores if progress.validated == progress.step else None
        with self._averaged():
            self._write_adapter(self._checkpoint(), progress.step, scores)

    def _write_adapter(self, folder: Path, step: int, scores: dict[str, float] | None) -> None:
        """Writes an adapter folder; the base may have to compute for it, and then every process does."""
        provenance = self._provenance(step, scores)
        with self._talking():
            if self.world.first:
                self.task.save_adapter(folder, provenance)
            elif self.together:
                with TemporaryDirectory() as thrown_away:
                    self.task.save_adapter(Path(thrown_away) / folder.name, provenance)

    def _prune(self) -> None:
        """Keeps the newest checkpoints and the best one."""
        if not self.world.first:
            return
        folders = sorted(self.checkpoints.iterdir())
        best = step_name(self.progress.best_step) if self.progress.best_step is not None else None
        for folder in folders[: -self.run.keep]:
            if folder.name != best:
                remove_folder(folder)

    def _finish(self) -> Path:
        """Writes the final adapter (the best one where there was a validation) and the loss curve."""
        adapter, best_step = self.run.folder / "adapter", self.progress.best_step
        final = self._result() if best_step is None else self.best
        with torch.no_grad():
            for name, parameter in self.task.trainables.items():
                parameter.copy_(final[name])
        if self.world.tell(not adapter.exists()):
            step = self.progress.step if best_step is None else best_step
            self._write_adapter(adapter, step, self.progress.best_scores)
        if self.world.first:
            draw_loss(self.run.folder)
        return adapter

    def _provenance(self, step: int, scores: dict[str, float] | None) -> dict[str, Any]:
        ema = {} if self.optim.ema is None else {"ema": self.optim.ema}
        return {"step": step, "steps": self.steps, "seed": self.optim.seed, "scores": scores, **ema}

    def _about(self) -> dict[str, Any]:
        """How the run computes; a change of settings is refused on resuming."""
        settings = json.loads(json.dumps({**asdict(self.optim), "steps": self.steps}))
        # Who runs out of memory may go on with less of it: the same run but for the last bits.
        del settings["tokens_per_batch"], settings["checkpointing"], settings["threads"]
        return {
            "settings": settings,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": str(self.task.device),
        }

    def _resume(self) -> None:
        """Takes up the newest run state, if there is one."""
        folder = newest_state(self.states)
        if folder is None:
            return
        state, about = read_state(folder), self._about()
        settings = about["settings"]
        # What an older state does not name had its default.
        before = {**json.loads(json.dumps(asdict(OptimSettings()))), **state.about["settings"]}
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise RunError(
                f"{self.run.folder} was begun with other settings ({', '.join(changed)}): "
                "put them back, or start a new run"
            )
        self.progress, self.best = state.progress, state.tensors["best"]
        load_trainables(state.tensors["trainables"], self.task.trainables, folder)
        load_optimizer_tensors(state.tensors["optimizer"], self.moving, self.optimizer)
        if self.ema is not None:
            load_trainables(state.tensors["ema"], self.ema.tensors, folder)
        # Sums are taken in another order with another number of threads.
        torch.set_num_threads(state.about["threads"])
        for what in ("torch", "device"):
            if state.about[what] != about[what]:
                log.warning(
                    "resuming with %s %s, begun with %s: the result may differ in the last bits",
                    what, about[what], state.about[what],
                )  # fmt: skip

    def _kept(self) -> str:
        folder = newest_state(self.states)
        if folder is None:
            return f"nothing was saved yet in {self.run.folder}"
        step = int(folder.name.split("-")[1])
        return f"step {step} is kept in {folder}: python train.py --resume {self.run.folder}"
