"""Score a trained model on BLiMP's minimal pairs, without fine-tuning.

python launchers/blimp.py runs/small/export --data FOLDER [--pairs N] [--output FILE.json]

MODEL is the export of a pre-training run, or a discriminator or masked LM of the hub. A discriminator scores a sentence
by the sum of its tokens' log-probabilities of being original, a masked LM by its pseudo-log-likelihood.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("--data", required=True, help="folder of BLiMP's PARADIGM.jsonl files")
    parser.add_argument("--pairs", type=int, default=0, help="the first so many of each paradigm (default: all)")
    parser.add_argument("--output", type=Path, help="JSON file to write (default: MODEL/blimp.json for a folder)")
    return parser.parse_args(arguments)


def page(model: str, kind: str, found: dict[str, Any]) -> str:
    """The report as a table for a person."""
    variants = ", ".join(f"{name} {value:.1%}" for name, value in found["variants"].items())
    lines = [f"{value:6.1%}  {name}" for name, value in found["paradigms"].items()]
    lines += ["", *(f"{value:6.1%}  {name}" for name, value in found["fields"].items())]
    lines += ["", f"{found['accuracy']:6.1%}  BLiMP, {found['pairs']:,} pairs, by {model} ({kind.replace('_', ' ')})"]
    return "\n".join([*lines, f"        {variants}; {found['seconds_per_1000_pairs']:.2f} s per 1,000 pairs"])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, which fast_electra/runs/failure.py lists."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    import torch  # seconds, which --help need not wait for

    from fast_electra.evaluation import blimp, trained
    from fast_electra.runs import failure

    device = "cuda" if torch.cuda.is_available() else "cpu"
    output = options.output or (Path(options.model) / "blimp.json" if Path(options.model).is_dir() else None)
    try:
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)  # before hours of scoring
        pairs = blimp.load(options.data, options.pairs)
        model = trained.open_model(options.model, device=device)
        found = trained.blimp_accuracy(model, pairs)
        if output:
            output.write_text(json.dumps({"model": options.model, "kind": model.kind, **found}, indent=2) + "\n")
    except (Exception, KeyboardInterrupt) as error:
        return failure.tell(error, failure.SCORING)
    print(page(options.model, model.kind, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
