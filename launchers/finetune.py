"""Fine-tune an encoder on GLUE and SQuAD, several seeds each: medians, ranges and test predictions.

python launchers/finetune.py --model runs/demo/export --tasks CoLA,RTE --data FOLDER --seeds 3 --output runs/glue

FOLDER holds the official files (CoLA/train.tsv ..., train-v1.1.json ...); without --data they come from the hub. The
output folder gets results.json, TASK/seed-N.json, and in predictions/seed-N/ the files that the GLUE server takes.
Killed and started again, this goes on with the first run that was not done; SIGTERM or SIGUSR1 ends it with status 75.
"""

import os
import sys
from contextlib import redirect_stdout
from typing import Any

from fast_electra.runs import preemption


def parse(arguments: list[str]) -> dict[str, Any]:
    """The options as `finetune_all` takes them. Raises ValueError naming what is wrong; `--help` exits."""
    from jsonargparse import ArgumentError, ArgumentParser

    from fast_electra.finetuning.finetune import Settings
    from fast_electra.runs import command_line

    parser = ArgumentParser(
        usage="%(prog)s --model MODEL --output OUTPUT [--tasks NAMES] [--data FOLDER] [--seeds N] [--SETTING VALUE]",
        description=__doc__,
        formatter_class=command_line.Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--model", type=str, required=True, help="exported folder, or an encoder's name on the hub")
    parser.add_argument(
        "--tasks",
        type=str,
        default="all",
        help="all, or names between commas: CoLA SST-2 MRPC STS-B QQP MNLI (with AX) QNLI RTE WNLI SQuAD-1.1 SQuAD-2.0",
    )
    parser.add_argument("--data", type=str, default="hub", help="folder of official files, or hub")
    parser.add_argument("--seeds", type=int, default=5, help="runs a task, with seeds 1 to this number")
    parser.add_argument("--output", type=str, required=True, help="folder to make, or to go on with")
    parser.add_class_arguments(Settings)
    group: Any = (parser.groups or {})["Settings"]
    group.title, group.description = "settings", "What is left out is the recipe's for the task and the model's width."
    for action in parser._actions:
        if setting := Settings.__dataclass_fields__.get(action.dest):
            unset = setting.metadata["unset"]
            action.help = setting.metadata["meaning"] + (f"; left out: {unset}" if unset else "")
    command_line.refuse_unknown(arguments, command_line.options(parser))
    try:
        options = parser.parse_args(arguments).as_dict()
    except ArgumentError as error:
        raise ValueError(command_line.in_words(error, Settings)) from error
    given = {name: options.pop(name) for name in ("model", "data", "output")}
    return {
        **given,
        "wanted": options.pop("tasks"),
        "num_seeds": options.pop("seeds"),
        "settings": Settings(**options),
    }


def main() -> int:
    """Run the command line; returns the exit status, which fast_electra/runs/failure.py lists."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from fast_electra.runs import failure

    try:
        options = parse(sys.argv[1:])
        # DeepSpeed, imported with the Trainer, logs to stdout: that is the table's
        with preemption.at_once(), redirect_stdout(sys.stderr):
            from transformers.utils import logging

            from fast_electra.evaluation import scores
            from fast_electra.finetuning import finetune_runs  # seconds of imports, after what can be refused at once

            logging.set_verbosity_error()
            logging.disable_progress_bar()
            results = finetune_runs.finetune_all(**options)
    except (Exception, KeyboardInterrupt, preemption.Preempted) as error:
        return failure.tell(error, failure.FINETUNING)
    print(scores.table(results["tasks"], results["glue_average"]))
    if results["without_data"]:
        print(f"no data for {', '.join(results['without_data'])}")
    print(f"all of it: {options['output']}/results.json")
    return 0


if __name__ == "__main__":
    preemption.install()
    sys.exit(main())
