"""A run that begins with the weights of an existing encoder instead of new ones.

What a joint run gives its discriminator through shared embeddings, a run on a frozen auxiliary model can take from that
model before it starts (`initial_weights = auxiliary`): ELECTRA's two-stage training does so (Clark et al., ICLR 2020).
With a folder or a name on the hub it goes on from an encoder that somebody has trained.

Both must compute alike, depth and dropout aside; `auto` takes the auxiliary model's weights where they do, and new
ones elsewhere. The first layers are taken, as many as both have; layers beyond them stay new, and so does the head.
Tables of more words or absolute positions than the run has are cut.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from fast_electra.auxiliary import refuse_other_vocabulary, unloadable, weights_fingerprint
from fast_electra.config import Config
from fast_electra.encoder import transformers_config
from fast_electra.require import require

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_EMBEDDINGS = re.compile(r"^embeddings")
_TABLE = re.compile(r"\.(word|tok|position)_embeddings\.weight$")
_TOKEN_TYPES = re.compile(r"\.token_type_embeddings\.weight$")
# Settings that do not change what an encoder computes with the same weights, or that its weights' sizes tell.
_OF_NO_MATTER = re.compile(
    r"^_|dropout|label|token_id|vocab_size|max_position|num_hidden_layers|layer_types|architectures|dtype|version|initial"
    r"|tie_|problem|classifier|pooler|output_|return_|chunk|cache|decoder|sparse|reference|repad|deterministic|cutoff"
)

_NOT_LOADED = "replay loads no auxiliary model; name its folder (--initial_weights FOLDER)"


def foresee(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for weights to begin with that will not fit, before an auxiliary model is trained."""
    shape = transformers_config(config.encoder, tokenizer)
    if config.initial_weights == "auxiliary":
        made = transformers_config(config.auxiliary_model.encoder, tokenizer)
        _refuse("auxiliary", _misfits(_encoder(_unfilled(made)), _encoder(_unfilled(shape)), config.initial_layers))
    elif config.initial_weights != "auto":
        read(config, shape, tokenizer)


def read(
    config: Config, shape: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Float32 weights of the encoder by their names in a base model of `shape`, and what to note of them.

    There are none for a run that begins with new ones. Raises ValueError where the encoder named does not fit.
    """
    named, automatic = config.initial_weights, config.initial_weights == "auto"
    path = config.auxiliary if automatic or named == "auxiliary" else named
    if not path:
        return {}, {"initial_misfit": _NOT_LOADED} if automatic and config.objective == "replay" else {}
    source, here = _load(path), _encoder(_unfilled(shape))
    misfits = _misfits(_encoder(source), here, config.initial_layers)
    if automatic and misfits:
        return {}, {"initial_misfit": misfits[0]}
    _refuse(path, misfits)
    refuse_other_vocabulary("initial_weights", path, source, tokenizer)
    most = min(config.initial_layers, shape.num_hidden_layers)
    taken = {
        name: fitted(name, weight.detach(), here.sizes[name])
        for name, weight in source.named_parameters()
        if _is_taken(name, most)
    }
    layers = {int(found[1]) for name in taken if (found := _LAYER.search(name))}
    return taken, {"initial_weights": weights_fingerprint(source), "initial_layers": len(layers), "initial_from": path}


def fitted(name: str, weight: Tensor, wanted: Size) -> Tensor:
    """The weight in the size `wanted`: longer tables are cut; token types, of which the first alone occurs, agree."""
    if weight.shape == wanted:
        return weight
    return weight[:1].expand(wanted) if _TOKEN_TYPES.search(name) else weight[: wanted[0]]


class _Encoder(NamedTuple):
    """What tells whether one encoder's weights serve another: its settings, and its weights' sizes by name."""

    config: PreTrainedConfig
    sizes: dict[str, Size]


def _encoder(model: PreTrainedModel) -> _Encoder:
    return _Encoder(model.config, {name: weight.shape for name, weight in model.named_parameters()})


def _misfits(there: _Encoder, here: _Encoder, layers: int) -> list[str]:
    """Why `there` cannot begin `here`, a reason each; none where it can."""
    if there.config.model_type != here.config.model_type:
        return [f"it is of the kind {there.config.model_type!r}, the run's encoder {here.config.model_type!r}"]
    of, to = there.config.to_dict(), here.config.to_dict()
    both = sorted(name for name in of.keys() & to.keys() if not _OF_NO_MATTER.search(name))
    found = [f"{name} is {of[name]!r} there, {to[name]!r} here" for name in both if of[name] != to[name]]
    depth = min(of["num_hidden_layers"], to["num_hidden_layers"])
    kinds = [list(each.get("layer_types") or [])[:depth] for each in (of, to)]
    found += [f"layer_types begin with {kinds[0]} there, {kinds[1]} here"] if kinds[0] != kinds[1] else []
    taken, wanted = (
        {name: size for name, size in each.sizes.items() if _is_taken(name, min(layers, depth))}
        for each in (there, here)
    )
    found += [f"{name} is in one of them alone" for name in sorted(wanted.keys() ^ taken.keys())]
    return found + [
        f"{name} has the shape {tuple(taken[name])} there, {tuple(wanted[name])} here"
        for name in sorted(wanted.keys() & taken.keys())
        if not _fits(name, taken[name], wanted[name])
    ]


def _fits(name: str, there: Size, wanted: Size) -> bool:
    cut = there[0] >= wanted[0] and bool(_TABLE.search(name))
    return there == wanted or (there[1:] == wanted[1:] and (cut or bool(_TOKEN_TYPES.search(name))))


def _refuse(path: str, misfits: list[str]) -> None:
    remedy = (
        "give the run's encoder the same shape (encoder.model_type, encoder.hidden_size, ...; what --help does not list"
        " there cannot be changed), begin with another encoder, or leave initial_weights out"
    )
    require(not misfits, "initial_weights", path, f"it does not fit: {'; '.join(misfits[:3])}; {remedy}")


def _unfilled(shape: PreTrainedConfig) -> PreTrainedModel:
    """An encoder of this shape without weights."""
    with torch.device("meta"):
        made: PreTrainedModel = AutoModel.from_config(shape)
    return made


def _load(path: str) -> PreTrainedModel:
    """The encoder at `path`. Raises ValueError where there is none, or not the whole of it."""
    try:
        with _quietly():  # a head that is left out is no news
            source, info = AutoModel.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, weights_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever a damaged or foreign file makes transformers, safetensors or torch raise
        raise unloadable("initial_weights", path, "encoder", error) from error
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
