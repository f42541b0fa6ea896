"""Tokens per second, MFU and peak memory of training steps, method and rivals in turn within one run.

Turns go A B C A B C ..., so that a machine that slows down slows all of them alike; the first turns warm up and are
dropped. What is timed is the whole step of a run, from the rows of the corpus to the metrics, updates of one
micro-batch a process or of `--micro_batches`, with the device awaited at each part's end. The peak is a matrix product
measured before and after each turn, beside the vendor's figure: on a machine with neighbours the matrix units run at
.4 of their pace for seconds on end, so that a turn counts for MFU where both products say the same.

    deepspeed --module benchmarks.measure [base/frozen base/joint_shallow ...] [--deepspeed ds_configs/zero1.json]
"""

import argparse
import gc
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import torch

from benchmarks import cases, rows
from benchmarks.cases import Case
from benchmarks.contest import contestant
from benchmarks.contest.contestant import PARTS, Contestant, Variant
from benchmarks.memory.live_memory import allocator_change, allocator_peak
from benchmarks.memory.per_gpu import REDUCE_BUCKET, per_gpu
from benchmarks.rows import Row
from benchmarks.simulate import simulate
from fast_electra.costs import flops
from fast_electra.engine import deepspeed_config, parallel
from fast_electra.models.encoder import attention_kernel

FORMULA = (
    "tokens/s: B x T of all processes / seconds of one update, the median of n turns (low, high: quartiles); "
    "MFU = FLOPs a token x tokens/s / peak, FLOPs without recomputation, backward = 2 x forward; its measured peak: "
    "the mean of the products before and after a turn, MFU the median of the turns between two products of one pace "
    "(within 15 %; of all turns if there is none); peak memory: bytes "
    "the allocator handed out for this objective's model, optimizer and step, on the first process; simulated: of the "
    "same step not compiled; batches are made ahead, as in a run"
)
WARM_UP, LEAST_TURNS = 2, 3
_SAME_PACE = 0.85  # of two products, the slower over the faster
COMPILED = {"no": (False,), "yes": (True,), "both": (False, True)}


def measure(
    wanted: Sequence[Case],
    settings: dict[str, Any],
    turns: int,
    steps: int,
    corpus: str = "",
    variants: Sequence[Variant] = (Variant(),),
) -> Iterator[list[Row]]:
    """A row for each case, timed in turn over `turns` turns of `steps` updates each. All processes take part.

    Each case is run in each of `variants`; the plain rival, which is never compiled, in the first. Rows come after
    every turn from the third on, memory not yet simulated, so that what is cut short has not been for nothing; the last
    ones are whole.
    """
    parallel.start()
    contestant.fail_beyond_most_graphs()
    contest = {"contest": secrets.token_hex(4)}  # rows of one contest were timed in turn, and only they were
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(parallel.from_rank_zero(scratch))
        ways = [(case, how) for case in wanted for how in (variants if case.objective != cases.PLAIN else variants[:1])]
        contestants = [_ready(case, settings, folder / str(how.compiled), corpus, how) for case, how in ways]
        for turn in range(turns):
            before = _matrix_product_flops(contestants[0].dtype)
            for each in contestants:
                each.turn(steps)
                after = _matrix_product_flops(contestants[0].dtype)
                each.products.append((before, after))
                before = after
                speed = each.tokens_per_step / each.seconds[-1]
                name = each.case.name + (" compiled" if each.run.config.run.compile else "")
                _tell(f"turn {turn + 1}/{turns}  {name:<53} {speed:>10,.0f} tokens/s")
            if LEAST_TURNS <= turn + 1 < turns:
                yield [_row(each, settings) | contest for each in contestants]
        parallel.barrier()
    yield [
        _row(each, settings) | {"simulated_memory_gib": _simulated_gib(each, settings)} | contest
        for each in contestants
    ]
    for each in contestants:
        each.close()


def _ready(case: Case, settings: dict[str, Any], scratch: Path, corpus: str, variant: Variant) -> Contestant:
    """The case built, warmed up, and its memory measured."""
    gc.collect()  # what an earlier contest left must not be released while this one is counted
    built: list[Contestant] = []

    def build_and_warm_up() -> None:
        built.append(contestant.build(case, settings, scratch, corpus, variant))
        for _ in range(WARM_UP):
            built[0].update()
        gc.collect()

    static = allocator_change(build_and_warm_up, parallel.device())
    each = built[0]
    each.peak_bytes = static + allocator_peak(lambda: each.update(), parallel.device())
    _tell(f"ready {case.name:<40} {each.peak_bytes / 2**30:>10.2f} GiB")
    return each


def _matrix_product_flops(dtype: torch.dtype) -> float:
    """The matrix-product rate of all processes together, measured in all at once, FLOP/s."""
    parallel.barrier()
    mine = flops.measured_matmul_flops_per_second(parallel.device(), dtype)
    total = torch.tensor(mine, dtype=torch.float64, device=parallel.device())
    return float(parallel.sum_over_processes(total))


def measured_mfu(
    flops_per_token: float, speeds: Sequence[float], products: Sequence[tuple[float, float]]
) -> tuple[float, float, int]:
    """MFU and peak (FLOP/s) of turns at so many tokens/s, and how many of them count.

    products: FLOP/s of a matrix product before and after each turn.
    """
    turns = list(zip(speeds, products, strict=True))
    steady = [turn for turn in turns if min(turn[1]) >= _SAME_PACE * max(turn[1])] or turns
    found = median(flops.mfu(flops_per_token, speed, mean(pair)) for speed, pair in steady)
    return found, median(mean(pair) for _, pair in steady), len(steady)


def _row(each: Contestant, settings: dict[str, Any]) -> Row:
    speeds = [each.tokens_per_step / seconds for seconds in each.seconds]
    low, _, high = quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else speeds * 3
    speed, flops_per_token = median(speeds), each.run.flops_per_token
    mfu, measured_peak, steady = measured_mfu(flops_per_token, speeds, each.products)
    on_gpu = parallel.device().type == "cuda"
    vendor = flops.vendor_peak(torch.cuda.get_device_name(), each.dtype) if on_gpu else None
    vendor = vendor * parallel.world_size() if vendor else None
    return {
        "kind": "throughput",
        **each.conditions(settings),
        "auxiliary_engine": each.run.facts.get("auxiliary_engine"),
        "tokens_per_second": speed,
        "tokens_per_second_low": low,
        "tokens_per_second_high": high,
        "tokens_per_second_all": speeds,
        "seconds_by_part": {name: median(part[name] for part in each.parts) for name in PARTS},
        "flops_per_token": flops_per_token,
        "vendor_peak_tflops": vendor / 1e12 if vendor else None,
        "measured_peak_tflops": measured_peak / 1e12,
        "mfu_vendor": flops.mfu(flops_per_token, speed, vendor) if vendor else None,
        "mfu_measured": mfu,
        "mfu_turns": steady,
        "products_tflops_all": [(before / 1e12, after / 1e12) for before, after in each.products],
        # On the first process; offloaded parts of DeepSpeed's settings are not simulated.
        "peak_memory_gib": each.peak_bytes / 2**30,
        "simulated_memory_gib": None,
        "n": len(speeds),
        "formula": FORMULA,
    }


def _simulated_gib(each: Contestant, settings: dict[str, Any]) -> float | None:
    """The peak that a simulation of the same step expects, DeepSpeed's buffer added; None for what is not simulated:
    the plain rival, and what does not compute in bf16."""
    if each.dtype != torch.bfloat16 or each.case.objective == cases.PLAIN:
        return None
    kernel = attention_kernel(each.run.config.encoder, each.case.sequence_length, parallel.device(), each.dtype)
    bucket = settings.get("zero_optimization", {}).get("reduce_bucket_size", REDUCE_BUCKET)
    expected = simulate(each.case, kernel)
    stage = deepspeed_config.zero_stage(settings)
    return float(per_gpu(expected, stage, parallel.world_size(), bucket=int(bucket))["total_gib"])


def _tell(line: str) -> None:
    if parallel.rank() == 0:
        print(line, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Measure the cases named, or the report's for this device, and keep their rows; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="recipe/objective[/sequence_length[/vocab_size[/masked/micro_rows]]]")
    parser.add_argument("--deepspeed", default="ds_configs/zero1.json", help="DeepSpeed's JSON")
    parser.add_argument("--turns", type=int, default=7, help="turns of each case")
    parser.add_argument("--steps", type=int, default=0, help="updates a turn; 0: 1 on a CPU, 10 on a GPU")
    parser.add_argument("--micro_batches", type=int, default=1, help="micro-batches of an update, each process's")
    parser.add_argument(
        "--compile", choices=COMPILED, help="through torch.compile; both: with and without; on a GPU yes, as a run does"
    )
    parser.add_argument("--corpus", default="", help="a prepared corpus; none: random words")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of the rows")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    on_gpu = _device_type() == "cuda"
    try:
        settings = deepspeed_config.read(given.deepspeed)
        origin = rows.provenance("throughput")  # of the code as it was loaded, whatever is edited meanwhile
        steps = given.steps or (10 if on_gpu else 1)
        ways = COMPILED[given.compile or ("yes" if on_gpu else "no")]
        contests = [[cases.parse(name) for name in given.cases]] if given.cases else cases.CONTESTS[_device_type()]
        for contest in contests:
            variants = [Variant(given.micro_batches, compiled=each) for each in ways]
            for measured in measure(contest, settings, given.turns, steps, given.corpus, variants):
                if parallel.rank() == 0:
                    rows.keep(given.output / "measured.jsonl", [row | origin for row in measured])
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
