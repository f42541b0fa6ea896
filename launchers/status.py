"""How runs are doing: `python launchers/status.py RUN [RUN ...]`, and the text of rows: `... RUN --rows 12 345`.

For each run: its state (running, finished, stopped, preempted, failed, dead), step, time left, last loss, the newest
checkpoint and whether it is whole, and why it stopped. Row numbers are those of spikes.jsonl and of messages.
"""

import argparse
import sys
from collections.abc import Iterator


def main() -> int:
    """Run the command line; returns the exit status: 0, or 2 where none of the folders is a run's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--rows", nargs="+", type=int, metavar="N", help="print the text of these rows of one run")
    parser.add_argument("--no_hashes", action="store_true", help="do not read the checkpoint, which may be large")
    options = parser.parse_args()
    shown = 0
    for run in options.runs[:1] if options.rows else options.runs:
        try:
            for text in _texts(run, options):
                print("\n" * (shown > 0 and not options.rows) + text, flush=True)
                shown += 1
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
    return 0 if shown else 2


def _texts(run: str, options: argparse.Namespace) -> Iterator[str]:
    """What was asked of a run: its rows, each a text, or how it is doing."""
    from fast_electra.batching import row_text  # some seconds, which --help and wrong options need not wait for
    from fast_electra.pretraining import status

    if options.rows:
        yield from (f"row {number}: {text}" for number, text in row_text.texts(run, options.rows))
    else:
        yield status.describe(status.of(run, not options.no_hashes))


if __name__ == "__main__":
    sys.exit(main())
