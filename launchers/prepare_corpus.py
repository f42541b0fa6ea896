"""Text to a corpus: `python launchers/prepare_corpus.py --input wiki.txt.xz --vocab_size 16000 --output data/wiki`.

The output folder holds corpus.bin and corpus.idx (Megatron's format), the tokenizer and manifest.json. Without --input
it is made of the interpreter's own documentation. The same command again does nothing; errors are one message and exit
status 2, and leave nothing half-written; so do SIGTERM and SIGUSR1, with status 75.
"""

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from fast_electra.runs import preemption

if TYPE_CHECKING:
    from fast_electra.corpora.corpus import Corpus

DEFAULT_VOCAB_SIZE = 16_000


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="text (a blank line ends a document), .jsonl, .parquet, each also .gz .xz .zst; folders of these; "
        "hf:NAME[:CONFIG][:SPLIT] of the datasets library (default: the interpreter's documentation)",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to make; it must not exist yet")
    parser.add_argument(
        "--vocab_size", type=int, metavar="N", help=f"entries of the trained tokenizer (default: {DEFAULT_VOCAB_SIZE})"
    )
    parser.add_argument("--kind", choices=("unigram", "bpe"), default="unigram", help="of the trained tokenizer")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME_OR_FOLDER",
        help="take this tokenizer (the auxiliary model's, or another corpus's) and train none",
    )
    parser.add_argument("--text_key", default="text", metavar="KEY", help="of the text in .jsonl, .parquet, datasets")
    parser.add_argument("--workers", type=int, metavar="N", help="tokenising processes (default: one a core)")
    return parser.parse_args(arguments)


def summary(made: "Corpus") -> str:
    """What was made, for a person."""
    manifest = made.manifest
    assert manifest is not None
    origin = manifest.settings["tokenizer"].split(",")[0]
    dropped = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in manifest.dropped.items())
    speed = f"{manifest.megabytes_per_second_per_worker:.2f} MB/s per worker"
    rows = {
        "corpus": str(made.path),
        "tokenizer": f"{origin}, {manifest.vocab_size:,} entries",
        "documents": f"{manifest.documents:,}",
        "tokens": f"{manifest.tokens:,} ({manifest.dtype})",
        "text": f"{manifest.text_bytes / 1e6:,.1f} MB, {manifest.text_bytes / manifest.tokens:.2f} bytes a token",
        "speed": f"{speed}, {manifest.workers} workers, {manifest.seconds:.1f} s to tokenise",
        "dropped": dropped,
    }
    return "\n".join(f"{name:<10} {text}" for name, text in rows.items())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, which fast_electra/runs/failure.py lists."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fast_electra").setLevel(logging.INFO)
    from fast_electra.corpora import corpus, tokenizer  # seconds, which --help and wrong options need not wait for
    from fast_electra.runs import failure

    try:
        with preemption.at_once():
            existing = tokenizer.load(options.tokenizer) if options.tokenizer else None
            made = corpus.build(
                options.input,
                options.output,
                tokenizer=existing,
                vocab_size=DEFAULT_VOCAB_SIZE
                if existing is None and options.vocab_size is None
                else options.vocab_size,
                kind=options.kind,
                text_key=options.text_key,
                workers=options.workers,
            )
    except (Exception, KeyboardInterrupt, preemption.Preempted) as error:
        return failure.tell(error, failure.PREPARING)
    print(summary(made))
    return 0


if __name__ == "__main__":
    preemption.install()
    sys.exit(main())
