"""What a run says of itself: a progress bar with the time left, metrics.jsonl, DeepSpeed's monitors.

Counts pile up on the device and are fetched only when a row is due. The clock stops for evaluation and saving, and
the first update of a start, which warms up, counts in no tokens/s: it is that of training.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fast_electra.costs import flops
from fast_electra.engine import optim, parallel
from fast_electra.pretraining.health import Health
from fast_electra.pretraining.setup_run import Run
from fast_electra.runs import summary
from fast_electra.runs.run_folder import MetricsLog
from fast_electra.runs.watchdog import LONG, Watchdog


def peak_memory_gib() -> float:
    """The most memory so far: allocated on the GPU in training, or resident in this process on a CPU."""
    if parallel.device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget_start_up() -> None:
    """Peak memory of a GPU counts from here: a start-up measures and tries out what training does not need."""
    if parallel.device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()


class Progress:
    """The clock, the bar and the rows of one run on one process; only the first process shows and writes."""

    def __init__(self, run: Run, watchdog: Watchdog) -> None:
        self.run, self.config = run, run.config
        self.startup_seconds: float | None = None  # to the end of this start's first update, once that is made
        self.speaks = parallel.rank() == 0
        self.seconds, self._resumed_at = run.position.seconds, time.perf_counter()
        self._counts: Tensor | None = None
        self._update_counts: Tensor | None = None
        self._logged = (run.position.step, self.seconds)
        self._warm: tuple[int, float] | None = None
        self.log = MetricsLog(self.config.output, run.position.step) if self.speaks else None
        self.watchdog = watchdog
        self.health = Health(run, self.log.kept if self.log is not None else [])
        if self.speaks and run.position.step:
            tqdm.write(f"{self.config.output} goes on from step {run.position.step:,}")
        elif self.speaks and (begun := summary.begun(run.facts)):
            tqdm.write(f"{self.config.output} begins with {begun}")
        self.bar = tqdm(
            total=self.config.run.steps,
            initial=run.position.step,
            desc=self.config.recipe,
            unit="step",
            disable=not self.speaks,
            dynamic_ncols=True,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
        )

    def add(self, counts: Tensor, loss: Tensor) -> None:
        """A micro-batch's counts, and its loss."""
        self._update_counts = _plus(self._update_counts, counts)
        self.health.add(loss)

    def end_update(self) -> None:
        """What was added has led to an update. All processes take part; raises DivergedError for an earlier one."""
        assert self._update_counts is not None
        self._count(self.health.end_update(self._update_counts))
        self._update_counts = None
        if self._warm is None:
            self.settle()  # so that it has ended, not only begun, on a GPU too
            self._warm = (self.run.position.step + 1, self.elapsed())
            self.startup_seconds = time.time() - self.run.began
        self.watchdog.begin(f"training after step {self.run.position.step + 1:,}")

    def settle(self) -> None:
        """Wait until all updates so far are known to have been made, and count them. Raises DivergedError."""
        self._count(self.health.settle())

    def _count(self, made: list[Tensor]) -> None:
        for counts in made:
            self._counts = _plus(self._counts, counts)

    def elapsed(self) -> float:
        """Seconds of training so far, over all starts of the run, pauses left out."""
        return self.seconds + time.perf_counter() - self._resumed_at

    def tokens_per_second(self, step: int, seconds: float, since: tuple[int, float] = (0, 0.0)) -> float:
        """From (step, seconds) `since` to these; this start's first update is left out, unless it is the only one."""
        if self._warm is not None and since[0] < self._warm[0] < step:
            since = self._warm
        tokens = (step - since[0]) * self.config.run.batch_rows * self.config.data.sequence_length
        return tokens / max(seconds - since[1], 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still inside, where evaluating and saving may take long."""
        self.seconds = self.elapsed()
        step = f"step {self.run.position.step:,}"
        self.watchdog.begin(f"evaluating or saving {step}", LONG)
        yield
        self.watchdog.begin(f"training after {step}")
        self._resumed_at = time.perf_counter()

    def close(self) -> None:
        """Nothing is shown any more."""
        self.bar.close()

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
        self.settle()
        run, config, step = self.run, self.config, self.run.position.step
        report: dict[str, float] = {}
        if self._counts is not None:
            report = run.objective.report(parallel.sum_over_processes(self._counts).cpu())
            self.health.look(report)
        gradient_norm = float(run.engine.get_global_grad_norm() or 0.0)
        seconds = self.elapsed()
        tokens_per_second = self.tokens_per_second(step, seconds, self._logged)
        self._counts, self._logged = None, (step, seconds)
        self.write(
            {
                "step": step,
                "rows_seen": run.position.rows_seen,
                "tokens": run.position.rows_seen * config.data.sequence_length,
                **run.objective.progress((step - 1) / config.run.steps),
                **report,
                "learning_rate": optim.learning_rate(config.optimizer, step - 1, config.run.steps),
                "gradient_norm": gradient_norm,
                "skipped_updates": self.health.skipped,
                "tokens_per_second": tokens_per_second,
                "mfu": flops.mfu(run.flops_per_token, tokens_per_second, run.peak_flops),
                "peak_memory_gib": peak_memory_gib(),
                "seconds": seconds,
            }
        )
        shown = {name: f"{report[name]:.3f}" for name in ("loss", "floor", "roc_auc", "accuracy") if name in report}
        self.bar.set_postfix(shown | {"tokens/s": f"{tokens_per_second:,.0f}"}, refresh=False)


def _plus(sums: Tensor | None, more: Tensor) -> Tensor:
    return more if sums is None else sums + more
