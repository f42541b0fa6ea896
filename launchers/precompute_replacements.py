"""Compute what a frozen masked LM would put at every masked position of a corpus, at every temperature, once.

deepspeed launchers/precompute_replacements.py --corpus FOLDER --auxiliary MODEL --recipe NAME --output FOLDER
    [--draws N] [--t_min T] [--t_max T] [--max_levels N]

Training then replays it: deepspeed launchers/pretrain.py --objective replay --replacements FOLDER. Give both the same
recipe, seed and --data settings. Killed and started again, this goes on where it was; told to stop by SIGTERM or
SIGUSR1, it finishes the shards that it is at and exits with 75.
"""

import argparse
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = {
    "corpus": "needed: folder that prepare_corpus.py made, or Megatron prefix, or several: a=0.7,b=0.3",
    "auxiliary": "needed: the masked LM whose samples are stored, a folder (runs/NAME/export) or hub name",
    "recipe": "demo (default), small, base, large, xl, electra_small, electra_base, electra_large",
    "seed": "of masks and samples (default: the recipe's)",
    "tokenizer": "folder or hub name, for a Megatron corpus that has none beside it",
    "auxiliary_gate": "false: take also a masked LM that predicts too little (default true)",
    "auxiliary_engine": "what the masked LM runs on: plain, compiled, injected (default auto, here plain)",
}


def own_parser() -> argparse.ArgumentParser:
    """This launcher's own options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", required=True, help="folder to make, or to go on with")
    parser.add_argument(
        "--draws", type=int, help="masks stored for each row, one for each pass (default: data.num_draws, or 1)"
    )
    parser.add_argument("--t_min", type=float, default=1.0, help="lowest temperature that can be replayed (default 1)")
    parser.add_argument("--t_max", type=float, default=4.0, help="highest temperature (default 4)")
    parser.add_argument(
        "--max_levels",
        type=int,
        default=2**16,
        help="temperatures to tell apart (default 65536; 256 is a fifth smaller)",
    )
    shared = parser.add_argument_group(
        "shared with the training",
        "these, --data.* and all other settings of launchers/pretrain.py, whose --help has them",
    )
    for name, meaning in SHARED.items():
        shared.add_argument(f"--{name}", default=argparse.SUPPRESS, help=meaning)
    return parser


def summary(folder: str, manifest: dict[str, Any]) -> str:
    """What was made, for a person."""
    made, histogram = manifest["provenance"], manifest["positions_by_entries"]
    positions = sum(histogram)
    shares = ", ".join(f"{count}: {n / positions:.1%}" for count, n in enumerate(histogram[:6]) if n)
    mean = sum(count * n for count, n in enumerate(histogram)) / positions
    first, last, exponent = made["grid"]
    low, high = first * 2.0**-exponent, last * 2.0**-exponent
    rows = {
        "replacements": folder,
        "rows": f"{made['num_rows']:,} x {made['num_draws']} draws, {made['masked_per_row']} masked of "
        f"{made['sequence_length']} tokens each",
        "temperatures": f"{low:g} to {high:g} in {last - first + 1:,} levels",
        "size": f"{manifest['bytes_per_token']:.3f} bytes a token of corpus and draw, "
        f"{manifest['bytes_per_masked_position']:.2f} a masked position",
        "entries": f"{mean:.2f} a position ({shares}, more: {sum(histogram[6:]) / positions:.1%})",
    }
    return "\n".join(f"{name:<12} {text}" for name, text in rows.items())


def main() -> int:
    """Run the command line; returns the exit status, which fast_electra/runs/failure.py lists."""
    from fast_electra.runs import preemption

    preemption.install()
    parser = own_parser()
    options, settings = parser.parse_known_args(sys.argv[1:])
    settings += [f"--{name}={value}" for name, value in vars(options).items() if name in SHARED]
    from fast_electra.runs import command_line, failure  # seconds, which --help need not wait for

    manifest = None
    try:
        of_a_run, taken = "settings of launchers/pretrain.py", command_line.options(parser)
        config, _ = command_line.parse([*settings, f"--output={options.output}"], of_a_run, taken)
        from fast_electra.engine import parallel
        from fast_electra.pretraining import precompute

        with suppress(preemption.Preempted):
            config = precompute.with_draws(config, options.draws)
            manifest = precompute.precompute(config, options.t_min, options.t_max, options.max_levels)
    except (Exception, KeyboardInterrupt) as error:
        failure.leave(error, failure.PRECOMPUTING)
    if parallel.rank() == 0:
        done = summary(config.output, manifest) if manifest is not None else f"stopped; {failure.PRECOMPUTING.goes_on}"
        print(done, flush=True)
    return parallel.stop(0 if manifest is not None else preemption.EXIT_STATUS)


if __name__ == "__main__":
    sys.exit(main())
