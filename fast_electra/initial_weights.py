"""A run that begins with the weights of an existing encoder instead of new ones.

What a joint run gives its discriminator through shared embeddings, a run on a frozen auxiliary model can take from that
model before it starts (`initial_weights = auxiliary`): ELECTRA's two-stage training does so (Clark et al., ICLR 2020).
With a folder or a name on the hub it goes on from an encoder that somebody has trained.

Both must be of one kind and width; `auto` takes the auxiliary model's weights where they are, and new ones elsewhere.
The first layers are taken, as many as both have; layers beyond them stay new, and so does the head. Absolute position
embeddings of longer rows are cut.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from fast_electra.auxiliary import refuse_other_vocabulary, weights_fingerprint
from fast_electra.config import Config
from fast_electra.require import require

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_SIZES = ("model_type", "hidden_size", "intermediate_size", "num_attention_heads", "embedding_size")
_EMBEDDINGS = re.compile(r"^embeddings")


def read(
    config: Config, shape: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Float32 weights of the encoder by their names in a base model of `shape`, and what to note of them.

    Both are empty for a run that begins with new weights. Raises ValueError where the encoder named does not fit.
    """
    path = _named(config, shape)
    if not path:
        return {}, {}
    source = _load(path)
    remedy = f"it is of the kind {source.config.model_type!r}; set encoder.model_type to it"
    require(source.config.model_type == shape.model_type, "initial_weights", path, remedy)
    refuse_other_vocabulary("initial_weights", path, source, tokenizer)
    most = min(config.initial_layers, shape.num_hidden_layers)
    taken = {name: weight.detach() for name, weight in source.named_parameters() if _is_taken(name, most)}
    layers = {int(found[1]) for name in taken if (found := _LAYER.search(name))}
    facts = {"initial_weights": weights_fingerprint(source), "initial_layers": len(layers), "initial_from": path}
    return taken, facts


def _named(config: Config, shape: PreTrainedConfig) -> str:
    """The folder or hub name to begin with, if any."""
    if config.initial_weights == "auxiliary":
        return config.auxiliary
    if config.initial_weights != "auto":
        return config.initial_weights
    if not config.needs_auxiliary:
        return ""
    found = AutoConfig.from_pretrained(config.auxiliary, trust_remote_code=False)
    fits = all(getattr(found, name, None) == getattr(shape, name, None) for name in _SIZES)
    return config.auxiliary if fits else ""


def _load(path: str) -> PreTrainedModel:
    """The encoder at `path`. Raises ValueError where there is none, or not the whole of it."""
    try:
        with _quietly():  # a head that is left out is no news
            source, info = AutoModel.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, weights_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever a damaged or foreign file makes transformers, safetensors or torch raise
        raise ValueError(
            f"initial_weights = {path!r} is no encoder that transformers can load ({error}); name a folder written by "
            "save_pretrained (runs/NAME/export) or a hub model"
        ) from error
    absent = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    remedy = "they would be random; use a checkpoint that holds the whole encoder"
    require(not absent, "initial_weights", path, f"weights such as {', '.join(absent[:3])} are not in it: {remedy}")
    made: PreTrainedModel = source
    return made


@contextmanager
def _quietly() -> Iterator[None]:
    """Inside, transformers tells of errors alone."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _is_taken(name: str, most: int) -> bool:
    """Whether a weight of the base model is among the embeddings and the `most` first layers (0: embeddings alone)."""
    found = _LAYER.search(name)
    if found:
        return int(found[1]) < most
    return "pooler" not in name and (most > 0 or bool(_EMBEDDINGS.match(name)))


def fitted(name: str, weight: Tensor, wanted: torch.Size) -> Tensor:
    """The weight in the size that the run's encoder has: embeddings of more words or positions are cut.

    Raises ValueError for any other size.
    """
    longer = weight.dim() == len(wanted) and weight.shape[1:] == wanted[1:] and weight.shape[0] >= wanted[0]
    if weight.shape == wanted or (longer and _EMBEDDINGS.match(name)):
        return weight[: wanted[0]]
    raise ValueError(
        f"initial_weights: {name} has the shape {tuple(weight.shape)} there, {tuple(wanted)} in this run; give the "
        "encoder the sizes of the one it begins with (encoder.hidden_size, intermediate_size, embedding_size, ...)"
    )
