"""Runs worth naming: each recipe is a function that returns a Config, with its command and sources in the docstring.

`demo small base large xl` use a modern encoder (ModernBERT's kind: pre-norm, rotary, gated, every layer global);
`electra_small electra_base electra_large` follow the table of the ELECTRA paper (Clark et al., ICLR 2020). The
auxiliary model has the discriminator's width and a quarter to a third of its depth (Dong et al., ICLR 2024, and the
METRO line). `NAME.auxiliary` is the masked-LM run that makes that model.

`demo small base large xl` begin with their auxiliary model's weights (`initial_weights`), which the study decided: rows
`frozen_warm` beside `frozen` and `joint_shallow` at the scale 4x128 in benchmarks/results/quality.jsonl. The ELECTRA
recipes begin anew, as their paper's joint training does.

The temperature begins at 2 and descends with tau = .1, as in Dong et al.: better than T = 1 throughout for a run that
begins so (rows `frozen_warm` beside `two_stage_warm`, three seeds each; `frozen` beside `two_stage`, from new
weights, is too noisy to tell); tau = .3 was not better beyond what seeds do (rows `exponential_2_0.3` beside
`exponential_2_0.1`, three seeds each). A higher T_0 has one seed so far.

Attention dropout is 0 in the modern recipes: torch's fused attention takes none on a CPU. The ELECTRA recipes keep
the paper's 0.1 and pay for it with plain attention there.
"""

from collections.abc import Callable
from dataclasses import replace

from fast_electra.settings.config import (
    AuxiliaryConfig,
    Config,
    DataConfig,
    EncoderConfig,
    GeneratorConfig,
    TemperatureConfig,
)
from fast_electra.settings.require import did_you_mean
from fast_electra.settings.run_config import OptimizerConfig, RunConfig


def demo() -> Config:
    """Minutes on two cores, on the interpreter's own documentation.

    `deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json`
    """
    encoder = EncoderConfig(num_layers=4, hidden_size=128, num_heads=4, intermediate_size=352, max_positions=128)
    return Config(
        recipe="demo",
        output="runs/demo",
        data=DataConfig(sequence_length=64, held_out_rows=512, vocab_size=1024),
        encoder=encoder,
        auxiliary_model=AuxiliaryConfig(encoder=replace(encoder, num_layers=2), steps=600, peak_learning_rate=1.5e-3),
        generator=GeneratorConfig(depth_divisor=2),
        optimizer=OptimizerConfig(peak_learning_rate=1.5e-3),
        run=RunConfig(steps=400, batch_rows=32, micro_batch_rows=32, log_every=25, evaluate_every=200, save_every=200),
        initial_weights="auto",
    )


def small() -> Config:
    """ELECTRA-small's budget with a modern encoder: 12 layers x 256, rows of 128, 1M updates of 128 rows.

    `deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json --recipe small --corpus data/wiki`
    """
    encoder = EncoderConfig(num_layers=12, hidden_size=256, num_heads=4, intermediate_size=704, max_positions=512)
    return Config(
        recipe="small",
        output="runs/small",
        data=DataConfig(sequence_length=128, held_out_rows=1024, vocab_size=16_000),
        encoder=encoder,
        auxiliary_model=AuxiliaryConfig(encoder=replace(encoder, num_layers=4), steps=500_000, peak_learning_rate=1e-3),
        optimizer=OptimizerConfig(peak_learning_rate=5e-4, warmup_ratio=0.02),
        run=RunConfig(steps=1_000_000, batch_rows=128, micro_batch_rows=128),
        initial_weights="auto",
    )


def base() -> Config:
    """The METRO line's base setting: 12 layers x 768, 125k updates of 2048 x 512 tokens, peak 4e-4, 4-layer auxiliary.

    `deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json --recipe base --corpus data/wiki`
    """
    encoder = EncoderConfig(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=2048, max_positions=512)
    return Config(
        recipe="base",
        output="runs/base",
        encoder=encoder,
        auxiliary_model=AuxiliaryConfig(encoder=replace(encoder, num_layers=4)),
        optimizer=OptimizerConfig(peak_learning_rate=4e-4, warmup_ratio=0.08),
        run=RunConfig(steps=125_000, batch_rows=2048, micro_batch_rows=64),
        initial_weights="auto",
    )


def large() -> Config:
    """24 layers x 1024, 6-layer auxiliary, updates as in `base` at half its learning rate.

    `deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json --recipe large --corpus data/wiki`
    """
    encoder = EncoderConfig(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=2752, max_positions=512)
    config = base()
    return replace(
        config,
        recipe="large",
        output="runs/large",
        encoder=encoder,
        auxiliary_model=replace(config.auxiliary_model, encoder=replace(encoder, num_layers=6)),
        generator=GeneratorConfig(depth_divisor=4),
        optimizer=replace(config.optimizer, peak_learning_rate=2e-4),
        run=replace(config.run, micro_batch_rows=32),
    )


def xl() -> Config:
    """About 1.4 billion weights: 48 layers x 1536, 12-layer auxiliary; meant for ZeRO-3 on many GPUs.

    `deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json --recipe xl --corpus data/wiki`
    """
    encoder = EncoderConfig(num_layers=48, hidden_size=1536, num_heads=24, intermediate_size=4096, max_positions=512)
    config = base()
    return replace(
        config,
        recipe="xl",
        output="runs/xl",
        encoder=encoder,
        auxiliary_model=replace(config.auxiliary_model, encoder=replace(encoder, num_layers=12)),
        generator=GeneratorConfig(depth_divisor=4),
        optimizer=replace(config.optimizer, peak_learning_rate=1e-4),
        run=replace(config.run, micro_batch_rows=8),
    )


def electra_small() -> Config:
    """ELECTRA-small as in its paper: 12 layers x 256, embeddings of 128, 1M updates of 128 x 128 tokens, 5e-4.

    `deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json --recipe electra_small --corpus data/wiki`
    """
    return _electra(
        "electra_small",
        EncoderConfig("electra", 12, 256, 4, 1024, embedding_size=128, dropout=0.1, attention_dropout=0.1),
        DataConfig(sequence_length=128, held_out_rows=1024),
        RunConfig(steps=1_000_000, batch_rows=128, micro_batch_rows=128),
        peak_learning_rate=5e-4,
    )


def electra_base() -> Config:
    """ELECTRA-base as in its paper: 12 layers x 768, 766k updates of 256 x 512 tokens, 2e-4.

    `deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json --recipe electra_base --corpus data/wiki`
    """
    return _electra(
        "electra_base",
        EncoderConfig("electra", 12, 768, 12, 3072, dropout=0.1, attention_dropout=0.1),
        DataConfig(),
        RunConfig(steps=766_000, batch_rows=256, micro_batch_rows=64),
        peak_learning_rate=2e-4,
    )


def electra_large() -> Config:
    """ELECTRA-large as in its paper: 24 layers x 1024, 400k updates of 2048 x 512 tokens, 2e-4, 25 % masked.

    `deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json --recipe electra_large --corpus data/wiki`
    """
    return _electra(
        "electra_large",
        EncoderConfig("electra", 24, 1024, 16, 4096, dropout=0.1, attention_dropout=0.1),
        DataConfig(mask_rate=0.25),
        RunConfig(steps=400_000, batch_rows=2048, micro_batch_rows=32),
        peak_learning_rate=2e-4,
    )


def _electra(name: str, encoder: EncoderConfig, data: DataConfig, run: RunConfig, peak_learning_rate: float) -> Config:
    """One of the ELECTRA paper's shapes with its optimizer: Adam .9/.999, eps 1e-6, decay .01, clip 1, 10k warm-up."""
    sizes = GeneratorConfig(
        width_divisor=3 if encoder.hidden_size == 768 else 4, depth_divisor=4 if encoder.num_layers > 12 else 3
    )
    auxiliary = replace(encoder, num_layers=encoder.num_layers // sizes.depth_divisor)
    return Config(
        recipe=name,
        output=f"runs/{name}",
        data=data,
        encoder=encoder,
        auxiliary_model=AuxiliaryConfig(
            encoder=replace(auxiliary, dropout=0.0, attention_dropout=0.0),
            steps=run.steps,
            peak_learning_rate=peak_learning_rate,
        ),
        generator=sizes,
        temperature=TemperatureConfig(),
        optimizer=OptimizerConfig(peak_learning_rate, warmup_ratio=10_000 / run.steps, beta2=0.999),
        run=run,
    )


RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe for recipe in (demo, small, base, large, xl, electra_small, electra_base, electra_large)
}


def get(name: str) -> Config:
    """The config of a recipe, or of the run that makes its auxiliary model (`small.auxiliary`).

    Raises ValueError, with the nearest known name, when there is none of that name.
    """
    stem, _, suffix = name.partition(".")
    if stem not in RECIPES or suffix not in ("", "auxiliary"):
        known = f"choose one of {', '.join(RECIPES)}, or one of them + '.auxiliary'"
        raise ValueError(f"recipe = {name!r:.80}: {did_you_mean(stem, RECIPES)}{known}")
    config = RECIPES[stem]()
    return replace(config.for_auxiliary(), output=f"{config.output}-auxiliary") if suffix else config
