"""Pre-train a discriminator (or, with --objective mlm, a masked LM) under DeepSpeed.

deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json [--recipe NAME] [--corpus FOLDER] [--auxiliary MODEL]
"""

import os
import sys
import warnings


def main() -> int:
    """Run the command line; returns the exit status: 0 done, 2 refused input."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    from fast_electra import command_line, deepspeed_config, summary

    try:
        config, path = command_line.parse(sys.argv[1:], str(__doc__))
        settings = deepspeed_config.read(path)
        from fast_electra import parallel, pretrain  # seconds of imports, after what can be refused at once

        result = pretrain.pretrain(config, settings)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    if parallel.rank() == 0:
        print(summary.describe(result) if "export" in result else summary.stopped(result), flush=True)
    parallel.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
