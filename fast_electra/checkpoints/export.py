"""From an engine to a folder that stock transformers loads: weights, config, tokenizer, compared before it says done.

The weights are the optimizer's float32 masters, written in safetensors shards of bounded size, so that no process
needs room for more than one shard. Then the first process loads the folder with the stock class and compares its
logits with the engine's on real rows.

Pre-training gives all tokens the first token type. The others would stay as they were drawn, and the second text of a
pair be told by noise: they become the first, unless the run began with a model that tells types apart. The tokenizer
says how long the rows were: positions beyond them have never been trained.
"""

import copy
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fast_electra.engine import parallel, sharded_weights
from fast_electra.methods.objectives import Exported
from fast_electra.models import discriminator

SHARD_BYTES = 4 * 2**30
_TOKEN_TYPES = "token_type_embeddings.weight"
TOLERANCE = 0.02


def for_rows_of(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> PreTrainedTokenizerBase:
    """A copy that truncates, where it is asked to, to rows of so many tokens."""
    limited = copy.deepcopy(tokenizer)
    limited.model_max_length = num_tokens
    return limited


def export(
    engine: parallel.Engine,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    exported: Exported,
    own_token_types: bool = False,
) -> float:
    """Write a stock model that `engine` trained to `folder`; returns the largest difference of logits over their size.

    `own_token_types` keeps token types that no token had, as the model that the run began with has them.

    All processes take part. Raises RuntimeError, leaving `folder` as it was, when the logits differ by more than
    TOLERANCE.
    """
    model = exported.model
    partial = folder.with_name(folder.name + ".partial")
    if parallel.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        config = copy.deepcopy(model.config)
        config.architectures, config.dtype = [type(model).__name__], torch.float32
        if not type(model).__name__.endswith("ForMaskedLM"):
            config.id2label, config.label2id = {0: discriminator.LABEL}, {discriminator.LABEL: 0}
        config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    parallel.barrier()
    _write_weights(engine, exported, partial, own_token_types)
    difference = parallel.from_rank_zero(_difference(exported, partial) if parallel.rank() == 0 else None)
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"the exported model in {partial} differs from the trained one by {difference:.3g} of the logits' size, so "
            f"it was not put in place; the checkpoints beside it are whole. Please report this with your versions"
        )
    if parallel.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    parallel.barrier()
    return difference


@torch.no_grad()
def evaluated(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of an engine or module for `inputs` in eval mode, the loss left out."""
    training = module.training
    module.eval()
    _, *outputs = module(*inputs)
    module.train(training)
    return outputs


def _difference(exported: Exported, folder: Path) -> float:
    """Largest absolute difference of logits between the folder, loaded by the stock class, and the engine; inf if some
    weights are missing."""
    model, reference = exported.model, exported.logits.float()
    stock: Any = type(model)
    loaded, info = stock.from_pretrained(
        folder,
        dtype=next(model.parameters()).dtype,
        attn_implementation=model.config._attn_implementation,
        output_loading_info=True,
    )
    if info["missing_keys"] or info["unexpected_keys"]:
        return math.inf
    logits = evaluated(exported.wrap(loaded.to(reference.device)), exported.inputs)[0].float()
    return float((logits - reference).abs().max() / reference.abs().max())


def _write_weights(engine: parallel.Engine, exported: Exported, folder: Path, own_token_types: bool) -> None:
    """All weights as safetensors in shards of at most SHARD_BYTES, with transformers' index when there are several."""
    writes, size = parallel.rank() == 0, 0
    shards: list[dict[str, int]] = []
    shard: dict[str, Tensor] = {}
    added_to, module = exported.added or ("", nn.Module())
    for name, weight in sharded_weights.full_weights(engine, exported.model):
        if name == added_to:
            weight += next(sharded_weights.full_weights(engine, module))[1]
        if not writes:
            continue
        if name.endswith(_TOKEN_TYPES) and not own_token_types:
            weight[1:] = weight[0]
        if shard and size + weight.nbytes > SHARD_BYTES:
            shards.append(_write_shard(shard, folder, len(shards)))
            shard, size = {}, 0
        shard[name] = weight.contiguous()
        size += weight.nbytes
    if writes:
        shards.append(_write_shard(shard, folder, len(shards)))
        _name_shards(folder, shards)
    parallel.barrier()


def _write_shard(shard: dict[str, Tensor], folder: Path, number: int) -> dict[str, int]:
    file = folder / f"shard-{number}"
    save_file(shard, file, metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", file)  # safetensors lets its owner alone read what it writes
    return {name: weight.nbytes for name, weight in shard.items()}


def _name_shards(folder: Path, shards: list[dict[str, int]]) -> None:
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, sizes in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(sizes, file)
    total = sum(sum(sizes.values()) for sizes in shards)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
