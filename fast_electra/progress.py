"""What a run says of itself: a progress bar with the time left, metrics.jsonl, DeepSpeed's monitors.

Counts pile up on the device and are fetched only when a row is due. The clock stops for evaluation and saving, so
that tokens/s is that of training.
"""

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fast_electra import flops, optim, parallel
from fast_electra.run_folder import MetricsLog
from fast_electra.setup_run import Run


def peak_memory_gib() -> float:
    """The most memory so far: allocated on the GPU, or resident in this process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Progress:
    """The clock, the bar and the rows of one run on one process; only the first process shows and writes."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config
        self.speaks = parallel.rank() == 0
        self.seconds, self._resumed_at = run.position.seconds, time.perf_counter()
        self._counts: Tensor | None = None
        self._logged_step, self._logged_seconds = run.position.step, self.seconds
        self.log = MetricsLog(self.config.output, run.position.step) if self.speaks else None
        self.bar = tqdm(
            total=self.config.run.steps,
            initial=run.position.step,
            desc=self.config.recipe,
            unit="step",
            disable=not self.speaks,
            dynamic_ncols=True,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
        )

    def add(self, counts: Tensor) -> None:
        """A micro-batch's counts."""
        self._counts = counts if self._counts is None else self._counts + counts

    def elapsed(self) -> float:
        """Seconds of training so far, over all starts of the run, pauses left out."""
        return self.seconds + time.perf_counter() - self._resumed_at

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still inside."""
        self.seconds = self.elapsed()
        yield
        self._resumed_at = time.perf_counter()

    def write(self, row: dict[str, Any]) -> None:
        """One row of metrics.jsonl and of the monitors."""
        if self.log is not None:
            self.log.write(row)
            kind = "evaluation" if "held_out" in row else "train"
            values = row.get("held_out", row)
            numbers = [(f"{kind}/{name}", v, row["step"]) for name, v in values.items() if isinstance(v, (int, float))]
            self.run.engine.monitor.write_events(numbers)

    def log_step(self) -> None:
        """The row of the steps since the last one. All processes take part."""
        run, config, step = self.run, self.config, self.run.position.step
        assert self._counts is not None
        report = run.objective.report(parallel.sum_over_processes(self._counts).cpu())
        gradient_norm = float(run.engine.get_global_grad_norm() or 0.0)
        self._refuse_nan(step, report["loss"], gradient_norm)
        seconds = self.elapsed()
        tokens = (step - self._logged_step) * config.run.batch_rows * config.data.sequence_length
        tokens_per_second = tokens / (seconds - self._logged_seconds)
        self._counts, self._logged_step, self._logged_seconds = None, step, seconds
        self.write(
            {
                "step": step,
                "rows_seen": run.position.rows_seen,
                "tokens": run.position.rows_seen * config.data.sequence_length,
                **run.objective.progress((step - 1) / config.run.steps),
                **report,
                "learning_rate": optim.learning_rate(config.optimizer, step - 1, config.run.steps),
                "gradient_norm": gradient_norm,
                "tokens_per_second": tokens_per_second,
                "mfu": flops.mfu(run.flops_per_token, tokens_per_second, run.peak_flops),
                "peak_memory_gib": peak_memory_gib(),
                "seconds": seconds,
            }
        )
        shown = {name: f"{report[name]:.3f}" for name in ("loss", "floor", "roc_auc", "accuracy") if name in report}
        self.bar.set_postfix(shown | {"tokens/s": f"{tokens_per_second:,.0f}"}, refresh=False)

    def _refuse_nan(self, step: int, loss: float, gradient_norm: float) -> None:
        """Stop before a checkpoint of broken weights replaces a good one (DeepSpeed gives a broken norm as -1)."""
        if math.isfinite(loss) and math.isfinite(gradient_norm) and gradient_norm >= 0:
            return
        raise ValueError(
            f"loss {loss} and gradient norm {gradient_norm} in steps {self._logged_step + 1} to {step}: the numbers "
            f"have gone wrong. The checkpoints in {self.config.output} are from before; start again in a new folder "
            "with a lower optimizer.peak_learning_rate or a longer optimizer.warmup_ratio"
        )
