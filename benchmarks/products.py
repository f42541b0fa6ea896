"""What a step's matrix products and attention take by themselves: how much of a step they leave, and of its peak.

One micro-batch is run under a mode that notes each operation for which torch counts FLOPs, with the tensors it was
given. Then updates of the case and these operations alone are timed in turn within one process (A B A B ...). A step
cannot be quicker than its products on the same kernels: what they take says how much there is to win around them, and
which share of a device's peak they leave within reach. The operations are those of the step as it is without
torch.compile, and run again and again on warm caches: they may be a little quicker than within the step. One process.

    python -m benchmarks.products [base/frozen ...] [--compile] [--micro_batches 1] [--turns 5] [--output FOLDER]
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks import cases, rows
from benchmarks.cases import Case
from benchmarks.contest import contestant
from benchmarks.contest.contestant import PARTS, Contestant, Variant
from benchmarks.rows import Row
from fast_electra.costs import flops
from fast_electra.engine import deepspeed_config, parallel

FORMULA = (
    "an update's seconds, in turn with those of its matrix products and fused attention alone, each operation's times "
    "how often it occurs, as they are without torch.compile; medians of n turns; share: products and attention / "
    "update of each turn, median (lowest to highest), above 100 % by noise alone; TFLOP/s: FLOPs of the update, none "
    "counted twice, / seconds of the update, or of these alone; on a GPU the parts are those of another update, which "
    "waits after each of them"
)
WARM_UP = 2
ATTENTION = ("scaled_dot_product", "attention_gradient")


@dataclass
class Operation:
    """An operation as it was called, how often the micro-batch calls it so, and seconds of one call, turn by turn."""

    part: str
    call: Callable[[], object]
    name: str
    shapes: str
    flops: int
    times: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def is_attention(self) -> bool:
        """Whether it is fused attention; plain attention is matrix products and a softmax, which is not here."""
        return any(part in self.name for part in ATTENTION)


class Recorder(TorchDispatchMode):
    """Notes every operation that torch counts FLOPs for, those alike once; composite ones are taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: dict[tuple[Any, ...], Operation] = {}
        self._counts = flops.flop_counter().flop_registry
        self._part = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, operations belong to this part of a step; nothing is compiled, or a compiler would pass over for good
        what it meets first in here."""
        self._part = name
        with torch.compiler.set_stance("force_eager"), self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = self._counts.get(func.overloadpacket)
        if count is None:
            with self:
                taken_apart = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if taken_apart is NotImplemented else taken_apart
        result = func(*args, **kwargs)
        if number := count(*args, **kwargs, out_val=result):
            self._note(func, args, kwargs, number)
        return result

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> None:
        key = (self._part, str(func), repr(tree_map(_described, (args, kwargs))))
        if key not in self.operations:
            given, named = tree_map(lambda each: each.detach() if isinstance(each, Tensor) else each, (args, kwargs))
            shapes = " x ".join(str(tuple(each.shape)) for each in args if isinstance(each, Tensor))
            name = str(func.overloadpacket).removeprefix("aten.")
            self.operations[key] = Operation(self._part, lambda: func(*given, **named), name, shapes, number)
        self.operations[key].times += 1


def _described(each: Any) -> Any:
    return (tuple(each.shape), each.stride(), each.dtype) if isinstance(each, Tensor) else each


def operations(case: Case, settings: dict[str, Any], scratch: Path) -> list[Operation]:
    """The products and the attention of a micro-batch of a case, not compiled; their tensors are kept, the rest is not.

    What would lie beside the engine that is timed afterwards would slow it down: on a CPU by a tenth.
    """
    each, recorder = contestant.build(case, settings, scratch), Recorder()
    run = each.run
    rows_of_one = run.engine.train_micro_batch_size_per_gpu()
    batch = run.batches.training(0, rows_of_one).to(parallel.device())
    with recorder.part("inputs"):
        inputs = run.objective.inputs(batch, 0.5)
    with recorder.part("forward"):
        loss = run.engine(*inputs)[0]
    with recorder.part("backward"):
        run.engine.backward(loss)
    each.close()
    return list(recorder.operations.values())


def measure(case: Case, settings: dict[str, Any], turns: int, variant: Variant) -> Row:
    """A case's row: an update beside its products and its attention alone.

    Raises ValueError without a turn, and in more than one process.
    """
    parallel.start()
    if turns < 1 or parallel.world_size() > 1:
        raise ValueError(f"turns = {turns} in {parallel.world_size()} processes: give at least one, and one process")
    contestant.fail_beyond_most_graphs()
    with tempfile.TemporaryDirectory() as scratch:
        found = operations(case, settings, Path(scratch) / "noted")
        gc.collect()
        each = contestant.build(case, settings, Path(scratch) / "timed", variant=variant)
        for _ in range(WARM_UP):
            each.update()
            _time_alone(found, repeats=1)
        for operation in found:
            operation.seconds.clear()
        shares = []
        for turn in range(turns):
            shares.append(_take_turn(each, found))
            print(
                f"turn {turn + 1}/{turns}  {case.name}  {each.seconds[-1]:.4g} s, products {shares[-1]:.1%}", flush=True
            )
        each.close()
    return _row(each, settings, found, shares)


def _take_turn(each: Contestant, found: Sequence[Operation]) -> float:
    """One turn of both; what the operations take of the update."""
    on_gpu = parallel.device().type != "cpu"
    each.turn(steps=3 if on_gpu else 1)
    _time_alone(found, repeats=20 if on_gpu else 1)
    return _alone(each, found, itemgetter(-1)) / each.seconds[-1]


@torch.inference_mode()
def _time_alone(found: Sequence[Operation], repeats: int) -> None:
    """Note the seconds of one call of each, of `repeats` in a row, the device awaited at either end."""
    for operation in found:
        start = contestant.now()
        for _ in range(repeats):
            operation.call()
        operation.seconds.append((contestant.now() - start) / repeats)


def _row(each: Contestant, settings: dict[str, Any], found: Sequence[Operation], shares: list[float]) -> Row:
    on_gpu = parallel.device().type == "cuda"
    peak = flops.vendor_peak(torch.cuda.get_device_name(), each.dtype) if on_gpu else None
    by_part = {
        part: {
            "seconds": median(parts[part] for parts in each.parts),
            "products": _alone(each, [one for one in found if one.part == part and not one.is_attention]),
            "attention": _alone(each, [one for one in found if one.part == part and one.is_attention]),
        }
        for part in PARTS
    }
    seconds, alone = median(each.seconds), _alone(each, found)
    return {
        "kind": "products",
        **each.conditions(settings),
        "seconds": seconds,
        "seconds_alone": alone,
        "share": median(shares),
        "share_lowest": min(shares),
        "share_highest": max(shares),
        "by_part": by_part,
        "operations": [
            {
                "part": one.part,
                "operation": one.name,
                "shapes": one.shapes,
                "times": one.times * each.micro_batches,
                "seconds": median(one.seconds),
                "flops": one.flops,
            }
            for one in found
        ],
        "flops_per_token": each.run.flops_per_token,
        "vendor_peak_tflops": peak / 1e12 if peak else None,
        "tflops": each.run.flops_per_token * each.tokens_per_step / seconds / 1e12,
        "tflops_alone": each.run.flops_per_token * each.tokens_per_step / alone / 1e12,
        "n": len(shares),
        "formula": FORMULA,
    }


def _alone(
    each: Contestant, found: Sequence[Operation], of_turns: Callable[[Sequence[float]], float] = median
) -> float:
    """Seconds of an update's calls of these operations, each taken so `of_turns`."""
    return each.micro_batches * sum(one.times * of_turns(one.seconds) for one in found)


def main(arguments: Sequence[str]) -> int:
    """Measure the cases named and keep their rows; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="recipe/objective[/...]; none: the method's in the report's contests")
    parser.add_argument("--micro_batches", type=int, default=1, help="micro-batches of an update")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="the step through torch.compile, as a run on a GPU")
    parser.add_argument("--deepspeed", default="ds_configs/zero1.json", help="DeepSpeed's JSON")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of the rows")
    given = parser.parse_args(arguments)
    try:
        settings, origin = deepspeed_config.read(given.deepspeed), rows.provenance("products")
        variant = Variant(given.micro_batches, compiled=given.compile)
        contests = cases.CONTESTS["cuda" if torch.cuda.is_available() else "cpu"]
        usual = [case for contest in contests for case in contest if case.objective in cases.METHODS]
        for case in list(map(cases.parse, given.cases)) or usual:
            row = measure(case, settings, given.turns, variant) | origin
            rows.keep(given.output / "products.jsonl", [row])
            print("\n".join(_table(row)), flush=True)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _table(row: Row) -> Iterator[str]:
    """The operations, those that take most first, and what they leave."""
    yield f"{'part':<9} {'operation':<44} {'times':>5} {'ms':>9} {'TFLOP/s':>8}  shapes"
    for one in sorted(row["operations"], key=lambda one: -one["times"] * one["seconds"]):
        rate = one["flops"] / one["seconds"] / 1e12
        total = 1e3 * one["times"] * one["seconds"]
        yield f"{one['part']:<9} {one['operation']:<44} {one['times']:>5} {total:>9.2f} {rate:>8.3g}  {one['shapes']}"
    yield f"{row['recipe']}/{row['objective']}: {row['share']:.1%} of {row['seconds']:.4g} s an update"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
