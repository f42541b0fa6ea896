"""A run's health: updates left out because their numbers broke, spikes of the loss, a loss that sits at its floor.

What is found goes into spikes.jsonl with the numbers of the rows that it came from; `python launchers/status.py RUN
--rows N ...` prints their text. Every process comes to the same verdict at the same step.
"""

from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fast_electra.checkpoints import checkpoint
from fast_electra.engine import parallel, sharded_weights
from fast_electra.engine.broken_updates import Verdict
from fast_electra.methods.divergence import DivergedError, Spikes, is_below_floor, last_below_floor
from fast_electra.pretraining.setup_run import Run
from fast_electra.runs.run_folder import MetricsLog

_SHOWN_ROWS = 8
_IN_FLIGHT = 1  # updates whose verdict is left on its way: with the next one given to it, the device is never idle


class _Update(NamedTuple):
    step: int
    losses: Tensor  # of this process's micro-batches
    counts: Tensor
    verdict: Verdict


class Health:
    """Watches one run on one process; only the first process writes. `logged` are the rows of metrics.jsonl so far."""

    def __init__(self, run: Run, logged: list[dict[str, Any]]) -> None:
        self.run, self.config = run, run.config
        self.log = MetricsLog(run.config.output, run.position.step, "spikes.jsonl") if parallel.rank() == 0 else None
        found = self.log.kept if self.log is not None else []
        before = (sum(row["kind"] == "broken" for row in found), last_below_floor(logged))
        self.skipped, self._below_floor_at = parallel.from_rank_zero(before)
        self.spikes = Spikes(self.config.run.spike_deviations)
        self._update: list[Tensor] = []
        self._in_flight: deque[_Update] = deque()
        self._losses: list[Tensor] = []
        self._steps: list[int] = []

    def add(self, loss: Tensor) -> None:
        """The loss of a micro-batch of this process; it stays on the device."""
        self._update.append(loss.detach())

    def end_update(self, counts: Tensor) -> list[Tensor]:
        """The losses added since the last time, and `counts`, have led to an update; see `settle` for the one before.

        All processes take part.
        """
        verdict = Verdict([engine.optimizer for engine in self.run.engines])
        self._in_flight.append(_Update(self.run.position.step + 1, torch.stack(self._update), counts, verdict))
        self._update = []
        return self.settle(_IN_FLIGHT)

    def settle(self, but: int = 0) -> list[Tensor]:
        """The counts of each update now known to have been made; the last `but` ones are not asked after yet.

        All processes take part. Raises DivergedError for one that was left out, unless `run.on_nan` says skip and
        fewer than `run.max_skipped` were.
        """
        made = []
        while len(self._in_flight) > but:
            step, losses, counts, verdict = self._in_flight.popleft()
            if verdict.made():
                self._losses.append(losses)
                self._steps.append(step)
                made.append(counts)
            else:
                (each,) = self._everywhere([losses])
                self._refuse(step, each)
        return made

    def look(self, report: dict[str, float]) -> None:
        """Look at the updates since the last time, whose metrics are `report`. All processes take part.

        Raises DivergedError when the loss has been at its floor for `run.floor_patience` steps.
        """
        if self._losses:
            for step, losses in zip(self._steps, self._everywhere(self._losses), strict=True):
                self._judge(step, losses)
            self._losses, self._steps = [], []
        step, patience = self.run.position.step, self.config.run.floor_patience
        if is_below_floor(report):
            self._below_floor_at = step
        elif patience and step - self._below_floor_at >= patience:
            raise DivergedError(
                f"step {step}: the loss, {report['loss']:.4f}, has been at the majority-class floor, "
                f"{report['floor']:.4f}, since step {self._below_floor_at} (run.floor_patience = {patience}): nothing "
                f"is learned. {self._last_checkpoint()} Try a new folder with another optimizer.peak_learning_rate, a "
                "higher temperature.initial or a better auxiliary model; or raise run.floor_patience"
            )

    def require_sound_weights(self) -> None:
        """Raise DivergedError rather than save weights that are not finite. All processes take part."""
        sound = [sharded_weights.weights_are_finite(engine) for engine in self.run.engines]
        if not all(sound):
            raise DivergedError(
                f"step {self.run.position.step}: weights are no longer finite, and no checkpoint was made of them. "
                f"{self._last_checkpoint()} Try a new folder with a lower optimizer.peak_learning_rate"
            )

    def _everywhere(self, losses: list[Tensor]) -> Tensor:
        """The losses (updates, micro-batches of all processes), in the order of their samples."""
        mine = torch.stack(losses).double()
        table = mine.new_zeros(len(mine), parallel.world_size(), mine.shape[1])
        table[:, parallel.rank()] = mine
        return parallel.sum_over_processes(table).flatten(1).cpu()

    def _judge(self, step: int, losses: Tensor) -> None:
        """Write down an update that is a spike, with the rows of the micro-batches that made it so."""
        loss, limit = float(losses.mean()), self.spikes.limit
        if loss > limit:
            mean, deviation = self.spikes.mean, self.spikes.variance**0.5
            against = {"mean": mean, "standard_deviation": deviation}
            self._write(step, "spike", losses, losses > limit, against)
        self.spikes.add(loss)

    def _refuse(self, step: int, losses: Tensor) -> None:
        broken = ~losses.isfinite()
        rows = self._write(step, "broken", losses, broken if broken.any() else ~broken, {})
        self.skipped += 1
        run = self.config.run
        if run.on_nan == "skip" and self.skipped <= run.max_skipped:
            return
        what = f"the loss of {int(broken.sum())} of its {len(broken)} micro-batches" if broken.any() else "the gradient"
        listed = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (", ..." if len(rows) > _SHOWN_ROWS else "")
        count = f"{self.skipped} updates were left out, run.max_skipped is {run.max_skipped}. "
        raise DivergedError(
            f"step {step}: {what} is not finite; the update was not made. It came from {len(rows)} rows: {listed} (all "
            f"in {self.config.output}/spikes.jsonl; launchers/status.py {self.config.output} --rows N prints their "
            f"text). {count if run.on_nan == 'skip' else ''}{self._last_checkpoint()} Try the same command with "
            "--run.on_nan skip if it comes from a few rows; else a new folder with a lower "
            "optimizer.peak_learning_rate or a longer optimizer.warmup_ratio"
        )

    def _write(self, step: int, kind: str, losses: Tensor, guilty: Tensor, more: dict[str, float]) -> list[int]:
        """A row of spikes.jsonl; returns the numbers of the rows in the guilty micro-batches."""
        micro = self.run.engine.train_micro_batch_size_per_gpu()
        first = (step - 1) * self.config.run.batch_rows + np.flatnonzero(guilty.numpy()) * micro
        samples = (first[:, None] + np.arange(micro)).flatten().astype(np.int64)
        rows = (self.run.batches.row_keys(samples) % self.run.batches.num_rows).tolist()
        if self.log is not None:
            worst = losses[guilty].tolist()
            self.log.write(
                {"step": step, "kind": kind, "loss": float(losses.mean()), **more, "losses": worst, "rows": rows}
            )
        return rows

    def _last_checkpoint(self) -> str:
        """A sentence that says where the run can go on from."""
        saved = checkpoint.complete(Path(self.config.output) / "checkpoints")
        return f"The last checkpoint is from before: {saved[-1]}." if saved else "There is no checkpoint yet."
