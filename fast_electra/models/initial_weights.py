"""A run that begins with the weights of an existing encoder instead of new ones.

What a joint run gives its discriminator through shared embeddings, a run on a frozen auxiliary model can take from that
model before it starts (`initial_weights = auxiliary`): ELECTRA's two-stage training does so (Clark et al., ICLR 2020).
With a folder or a name on the hub it goes on from an encoder that somebody has trained.

Both must compute alike, depth and dropout aside; `auto` takes the auxiliary model's weights where they do, and new
ones elsewhere. The first layers are taken, as many as both have; layers beyond them stay new, and so does a
discriminator's head. A masked LM that the run trains takes the LM head besides: under `mlm` where there is one, and the
generator of a joint run, which begins with the same encoder as its discriminator, always. Tables of more words or
absolute positions than the run has are cut.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Size, Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from fast_electra.models.auxiliary import refuse_other_vocabulary, unloadable, weights_fingerprint
from fast_electra.models.encoder import transformers_config
from fast_electra.settings.config import Config
from fast_electra.settings.require import require

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_EMBEDDINGS = re.compile(r"^embeddings")
_TOKENS = re.compile(r"\.(word|tok)_embeddings\.weight$")
# Tables, and biases of LM heads: one row for each word or position.
_TABLE = re.compile(r"\.(word|tok|position)_embeddings\.weight$|(predictions|decoder|lm_head)\.bias$")
_TOKEN_TYPES = re.compile(r"\.token_type_embeddings\.weight$")
# Settings that do not change what an encoder computes with the same weights, or that its weights' sizes tell.
_OF_NO_MATTER = re.compile(
    r"^_|dropout|label|token_id|vocab_size|max_position|num_hidden_layers|layer_types|architectures|dtype|version|initial"
    r"|tie_|problem|classifier|pooler|output_|return_|chunk|cache|decoder|sparse|reference|repad|deterministic|cutoff"
)

_OF_HEADS = {"classifier_activation"}  # which an encoder has no use for

_NOT_LOADED = "replay loads no auxiliary model; name its folder (--initial_weights FOLDER)"
_ALL_LAYERS = 10**6


class Beginning(NamedTuple):
    """Float32 weights that a run begins with, none where new ones stay.

    `encoder`, by their names in a base model, are the discriminator's; `masked_lm`, by their names in a stock masked
    LM, those of the one that the run trains: its generator or, under `mlm`, all it has.
    """

    encoder: dict[str, Tensor]
    masked_lm: dict[str, Tensor]


def foresee(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for weights to begin with that will not fit, before an auxiliary model is trained."""
    shape = transformers_config(config.encoder, tokenizer)
    if config.initial_weights == "auxiliary":
        made = transformers_config(config.auxiliary_model.encoder, tokenizer)
        _refuse("auxiliary", _misfits(_unfilled(made), _unfilled(shape), config.initial_layers))
    elif config.initial_weights != "auto":
        read(config, shape, None, tokenizer)


def read(
    config: Config, shape: PreTrainedConfig, generator: PreTrainedConfig | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[Beginning, dict[str, Any]]:
    """What a run begins with, and what to note of it: `shape` is its encoder's, `generator` that of the one it trains.

    Raises ValueError where the encoder named does not fit.
    """
    named, automatic = config.initial_weights, config.initial_weights == "auto"
    path = config.auxiliary if automatic or named == "auxiliary" else named
    if not path:
        return Beginning({}, {}), {"initial_misfit": _NOT_LOADED} if automatic and config.objective == "replay" else {}
    trains_masked_lm = config.objective == "mlm" or generator is not None
    source, absent = _load(path, AutoModelForMaskedLM if trains_masked_lm else AutoModel)
    encoder, wanted = cast(PreTrainedModel, source.base_model), _unfilled(shape)
    misfits = _misfits(encoder, wanted, config.initial_layers)
    if automatic and misfits:
        return Beginning({}, {}), {"initial_misfit": misfits[0]}
    _refuse(path, misfits)
    refuse_other_vocabulary("initial_weights", path, source, tokenizer)
    taken = _taken(encoder, wanted, config.initial_layers)
    facts = {"initial_weights": weights_fingerprint(source), "initial_layers": _depth(taken), "initial_from": path}
    facts["initial_token_types"] = _tells_types_apart(taken)
    if generator is not None:
        _refuse_generator(path, source, absent, generator)
        begun = _taken(source, _unfilled(generator, AutoModelForMaskedLM), _ALL_LAYERS)
        if config.objective != "joint_decoupled":  # the discriminator's tokens are the generator's
            taken = {name: weight for name, weight in taken.items() if not _TOKENS.search(name)}
        return Beginning(taken, begun), facts | {"initial_generator_layers": _depth(begun)}
    if config.objective != "mlm":
        return Beginning(taken, {}), facts
    wanted = _unfilled(shape, AutoModelForMaskedLM)
    why_new = ["it has none"] if absent else _misfits(source, wanted, 1)
    if config.initial_layers == 0:
        why_new = ["initial_layers = 0"]
    if not why_new:
        return Beginning({}, _taken(source, wanted, config.initial_layers)), facts | {"initial_lm_head": ""}
    within = {f"{source.base_model_prefix}.{name}": weight for name, weight in taken.items()}
    return Beginning({}, within), facts | {"initial_lm_head": why_new[0]}


def _taken(source: PreTrainedModel, wanted: PreTrainedModel, layers: int) -> dict[str, Tensor]:
    """The weights of `source` that a model like `wanted` takes, in its sizes."""
    sizes, most = _sizes(wanted), min(layers, wanted.config.num_hidden_layers)
    return {
        name: fitted(name, weight.detach(), sizes[name])
        for name, weight in source.named_parameters()
        if _is_taken(name, most)
    }


def _tells_types_apart(taken: dict[str, Tensor]) -> bool:
    """Whether it has token types that differ: one that was trained on a single one says nothing of the others."""
    tables = (weight for name, weight in taken.items() if _TOKEN_TYPES.search(name))
    return any(bool((table != table[0]).any()) for table in tables)


def _depth(taken: dict[str, Tensor]) -> int:
    """How many layers these weights fill."""
    return len({int(found[1]) for name in taken if (found := _LAYER.search(name))})


def fitted(name: str, weight: Tensor, wanted: Size) -> Tensor:
    """The weight in the size `wanted`: longer tables are cut; token types, of which the first alone occurs, agree."""
    if weight.shape == wanted:
        return weight
    return weight[:1].expand(wanted) if _TOKEN_TYPES.search(name) else weight[: wanted[0]]


def _sizes(model: PreTrainedModel) -> dict[str, Size]:
    return {name: weight.shape for name, weight in model.named_parameters()}


def _misfits(source: PreTrainedModel, wanted: PreTrainedModel, layers: int) -> list[str]:
    """Why `source` cannot begin `wanted`, a reason each; none where it can. Both are encoders, or both masked LMs."""
    if source.config.model_type != wanted.config.model_type:
        return [f"it is of the kind {source.config.model_type!r}, the run's encoder {wanted.config.model_type!r}"]
    of, to = source.config.to_dict(), wanted.config.to_dict()
    of_head = _OF_HEADS if source.base_model is not source else set()
    both = sorted(name for name in of.keys() & to.keys() if not _OF_NO_MATTER.search(name) or name in of_head)
    found = [f"{name} is {of[name]!r} there, {to[name]!r} here" for name in both if of[name] != to[name]]
    depth = min(of["num_hidden_layers"], to["num_hidden_layers"])
    kinds = [list(each.get("layer_types") or [])[:depth] for each in (of, to)]
    found += [f"layer_types begin with {kinds[0]} there, {kinds[1]} here"] if kinds[0] != kinds[1] else []
    there, here = (
        {name: size for name, size in _sizes(model).items() if _is_taken(name, min(layers, depth))}
        for model in (source, wanted)
    )
    found += [f"{name} is in one of them alone" for name in sorted(here.keys() ^ there.keys())]
    return found + [
        f"{name} has the shape {tuple(there[name])} there, {tuple(here[name])} here"
        for name in sorted(here.keys() & there.keys())
        if not _fits(name, there[name], here[name])
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


def _refuse_generator(path: str, source: PreTrainedModel, absent: list[str], generator: PreTrainedConfig) -> None:
    """Raise ValueError unless a generator of this shape can begin with the masked LM at `path`."""
    remedy = "the generator's head would be random; name a masked LM (the export of an mlm run, or a generator)"
    found = f"it has no LM head ({', '.join(absent[:3])} are not in it)"
    require(not absent, "initial_weights", path, f"{found}: {remedy}")
    misfits = _misfits(source, _unfilled(generator, AutoModelForMaskedLM), _ALL_LAYERS)
    remedy = "name a masked LM with the stock head of its kind"
    if source.config.hidden_size != generator.hidden_size:
        remedy = (
            "discriminator and generator begin with the same encoder, so that both must be as wide: choose "
            "joint_shallow, or joint with --generator.width_divisor 1"
        )
    require(not misfits, "initial_weights", path, f"it does not fit the generator: {'; '.join(misfits[:3])}; {remedy}")


def _unfilled(shape: PreTrainedConfig, kind: Any = AutoModel) -> PreTrainedModel:
    """A model of this shape without weights."""
    with torch.device("meta"):
        made: PreTrainedModel = kind.from_config(shape)
    return made


def _load(path: str, kind: Any) -> tuple[PreTrainedModel, list[str]]:
    """The model at `path`, and which weights of an LM head are not in it.

    Raises ValueError where there is none, or not the whole of its encoder.
    """
    try:
        # A head that is left out is no news; what is drawn in its place has to have the same fingerprint each time.
        with _quietly(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            source, info = kind.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, weights_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever a damaged or foreign file makes transformers, safetensors or torch raise
        raise unloadable("initial_weights", path, "encoder", error) from error
    model: PreTrainedModel = source
    within = f"{model.base_model_prefix}." if model.base_model is not model else ""
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    of_encoder = [key for key in missing if key.startswith(within)]
    remedy = "they would be random; use a checkpoint that holds the whole encoder"
    require(
        not of_encoder, "initial_weights", path, f"weights such as {', '.join(of_encoder[:3])} are not in it: {remedy}"
    )
    return model, [key for key in missing if not key.startswith(within)]


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
