"""Pre-train text encoders by replaced-token detection against a frozen masked language model, on DeepSpeed.

From Python, in the one process that there is or in each that a launcher starts:

    from dataclasses import replace
    from fast_electra.engine import deepspeed_config, parallel
    from fast_electra.pretraining import pretrain
    from fast_electra.settings import recipes

    config = replace(recipes.get("small"), corpus="data/wiki", auxiliary="runs/aux/export", output="runs/small")
    summary = pretrain.pretrain(config, deepspeed_config.read("ds_configs/zero1.json"))
    parallel.stop(0)

The modules are the interface, `corpora.corpus.build`, `pretraining.precompute.precompute`,
`pretraining.pretrain.pretrain` and `finetuning.finetune.finetune` first of all: each does what the launcher of its name
does. Importing the package imports none of them.

Its rooms, in the order in which the data flows; a module imports only what stands above it, in its room or an earlier
one (each room lists its own):

files         read whole or refused, written whole or not at all
settings      a run as a value: config, recipes
corpora       text to a stream of token ids on disk
batching      a corpus to masked batches, each a function of (seed, row number)
kernels       how it is computed: numbers, operators of ours, the compiler
models        the discriminator, the auxiliary model, what they begin with
replacements  replacement paths: samples at every temperature, computed once
methods       a masked batch to a loss: Fast-ELECTRA and its rivals
evaluation    what a trained model is worth
costs         FLOPs of a step, and MFU
runs          a run's folder and the life of its processes
engine        the edge: DeepSpeed and several processes
checkpoints   what is kept of a run, and exported
pretraining   a run from its config to its summary
finetuning    pre-trained encoders on tasks
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fast_electra")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"
