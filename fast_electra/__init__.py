"""Pre-train text encoders by replaced-token detection against a frozen masked language model, on DeepSpeed.

From Python, in the one process that there is or in each that a launcher starts:

    from dataclasses import replace
    from fast_electra import deepspeed_config, parallel, pretrain, recipes

    config = replace(recipes.get("small"), corpus="data/wiki", auxiliary="runs/aux/export", output="runs/small")
    summary = pretrain.pretrain(config, deepspeed_config.read("ds_configs/zero1.json"))
    parallel.stop(0)

The modules are the interface, `corpus.build`, `precompute.precompute`, `pretrain.pretrain` and `finetune.finetune`
first of all: each does what the launcher of its name does. Importing the package imports none of them.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fast_electra")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"
