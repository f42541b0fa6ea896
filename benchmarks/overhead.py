"""What the engine and the loop cost: a run's own training step against the same models in a bare torch loop.

Both take the same rows, masks and samples of the same auxiliary model, in turn within one process (A B A B ...), and
do one update of `--micro_batches` micro-batches. The bare loop has nothing but bf16 weights, float32 masters, clipping
and torch's fused AdamW; the run has DeepSpeed's engine under ZeRO, the learning-rate schedule, metrics and progress.

    python -m benchmarks.overhead base/frozen/512/32000/masked/8 [--micro_batches 2] [--turns 5] [--deepspeed FILE]

Under ZeRO-3 DeepSpeed puts its own linear layer in torch's place, in the bare loop too: ZeRO-1 is the default.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn

from benchmarks import cases
from benchmarks.contest import contestant
from benchmarks.contest.contestant import Variant
from fast_electra.engine import deepspeed_config, optim, parallel
from fast_electra.kernels import compilation
from fast_electra.models.encoder import attention_kernel, transformers_config
from fast_electra.pretraining import choices, pretrain
from fast_electra.pretraining.progress import Progress
from fast_electra.pretraining.setup_run import Run
from fast_electra.runs.watchdog import Watchdog

WARM_UP = 1


class BareLoop:
    """The same objective and a discriminator of the same shape, trained by plain torch."""

    def __init__(self, run: Run) -> None:
        self.run, config = run, run.config
        shape = transformers_config(config.encoder, run.tokenizer)
        device, dtype = parallel.device(), choices.dtype_of(config)
        attention = attention_kernel(config.encoder, config.data.sequence_length, device, dtype)
        self.module: nn.Module = run.objective.module(shape, attention, dtype).to(device)
        if config.run.compile:
            compilation.compile_parts(self.module, compilation.parts(self.module))
        self.weights = list(self.module.parameters())
        self.masters = [weight.detach().float().clone().requires_grad_() for weight in self.weights]
        master_of = {id(weight): master for weight, master in zip(self.weights, self.masters, strict=True)}
        groups = optim.parameter_groups(self.module, config.optimizer.weight_decay)
        for group in groups:
            group["params"] = [master_of[id(weight)] for weight in group["params"]]
        betas = (config.optimizer.beta1, config.optimizer.beta2)
        epsilon = config.epsilon_for(config.objective)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=betas, eps=epsilon, fused=True)

    def step(self, number: int) -> None:
        """One update on the rows that the run's update `number` takes."""
        run, micro = self.run, self.run.engine.train_micro_batch_size_per_gpu()
        for first in range(number * run.config.run.batch_rows, (number + 1) * run.config.run.batch_rows, micro):
            batch = run.batches.training(first, micro).to(parallel.device())
            loss, *_ = self.module(*run.objective.inputs(batch, 0.5))
            (loss * (micro / run.config.run.batch_rows)).backward()
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = weight.grad.float() if weight.grad is not None else None
            weight.grad = None
        nn.utils.clip_grad_norm_(self.masters, run.config.optimizer.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            for weight, master in zip(self.weights, self.masters, strict=True):
                weight.copy_(master)


def run_step(run: Run, progress: Progress, number: int) -> None:
    """One update as the loop of a run does it."""
    micro = run.engine.train_micro_batch_size_per_gpu()
    pretrain.set_learning_rates(run, number)
    for first in range(number * run.config.run.batch_rows, (number + 1) * run.config.run.batch_rows, micro):
        pretrain.micro_step(run, run.batches.training(first, micro), 0.5, progress)
    progress.bar.update()


def timed(step: Callable[[int], None], number: int) -> float:
    """Seconds of one update, the device awaited."""
    start = time.perf_counter()
    step(number)
    if parallel.device().type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def compare(case: cases.Case, deepspeed: str, turns: int, variant: Variant) -> dict[str, object]:
    """Medians of both, and of the ratio of each pair of neighbours; the range of the ratios beside it."""
    parallel.start()
    with tempfile.TemporaryDirectory() as scratch:
        rows = cases.config(case).run.micro_batch_rows
        run = contestant.build(case, deepspeed_config.read(deepspeed), Path(scratch), variant=variant).run
        run.config = dataclasses.replace(run.config, output=scratch)
        bare, progress = BareLoop(run), Progress(run, Watchdog(0))
        pairs = []
        for turn in range(WARM_UP + turns):
            plain = timed(bare.step, turn)
            pairs.append((plain, timed(lambda number: run_step(run, progress, number), turn)))
        pairs = pairs[WARM_UP:]
        progress.bar.close()
    ratios = sorted(plain / whole for plain, whole in pairs)
    tokens = rows * variant.micro_batches * case.sequence_length
    return {
        "case": case.name,
        "deepspeed": deepspeed,
        "compiled": variant.compiled,
        "tokens_per_update": tokens,
        "turns": turns,
        "bare_tokens_per_second": tokens / median(plain for plain, _ in pairs),
        "run_tokens_per_second": tokens / median(whole for _, whole in pairs),
        "run_over_bare": median(ratios),
        "run_over_bare_range": [ratios[0], ratios[-1]],
    }


def main(arguments: Sequence[str]) -> int:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", default="base/frozen/512/32000/masked/8")
    parser.add_argument("--micro_batches", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="both through torch.compile")
    parser.add_argument("--deepspeed", default="ds_configs/zero1.json")
    given = parser.parse_args(arguments)
    try:
        variant = Variant(micro_batches=given.micro_batches, compiled=given.compile)
        print(json.dumps(compare(cases.parse(given.case), given.deepspeed, given.turns, variant), indent=2))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
