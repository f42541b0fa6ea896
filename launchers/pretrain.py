"""Pre-train a discriminator (or, with --objective mlm, a masked LM) under DeepSpeed.

deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json [--recipe NAME] [--corpus FOLDER] [--auxiliary MODEL]

Exit status: 0 done (or stopped at run.stop_at_step), 2 refused input, 3 the numbers have gone wrong, 4 no progress for
run.hang_minutes, 75 told to stop by SIGTERM, SIGUSR1 or Ctrl-C: the step was finished and saved, and the same command
goes on from there, 130 interrupted before it trained, or by a second Ctrl-C. WHEN_SOMETHING_GOES_WRONG.md has the whole
list.
"""

import os
import sys
import warnings
from pathlib import Path


def main() -> int:
    """Run the command line; returns the exit status, which fast_electra/runs/failure.py lists."""
    from fast_electra.runs import preemption

    preemption.install()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    from fast_electra.engine import deepspeed_config
    from fast_electra.runs import command_line, failure, summary

    try:
        config, path = command_line.parse(sys.argv[1:], str(__doc__))
        settings = deepspeed_config.read(path, beside=Path(__file__).resolve().parent.parent)
        from fast_electra.engine import parallel  # seconds of imports, after what can be refused at once
        from fast_electra.pretraining import pretrain

        result = pretrain.pretrain(config, settings)
    except (Exception, KeyboardInterrupt) as error:
        failure.leave(error)
    if parallel.rank() == 0:
        print(summary.describe(result) if "export" in result else summary.stopped(result), flush=True)
    return parallel.stop(preemption.EXIT_STATUS if result.get("preempted") else 0)


if __name__ == "__main__":
    sys.exit(main())
