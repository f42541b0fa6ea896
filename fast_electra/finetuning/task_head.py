"""A pre-trained encoder with a new head for a task, by transformers' own classes.

Whatever head the checkpoint has (replaced-token detection, masked LM) is left behind, but for a layer between encoder
and output that both classes share (ModernBERT's prediction head). The output layer is always new, also where an old one
would fit: a discriminator has one output, and so has STS-B. No weight of the encoder may be new.
"""

import json
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from fast_electra.corpora import tokenizer
from fast_electra.corpora.manifest import hash_file
from fast_electra.models import discriminator
from fast_electra.models.encoder import PLAIN_ATTENTION_TOKENS, positions_available

_OF_THE_WRITER = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
_UNNAMED = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}  # what exports said before it had a name
_LEAST_ROW = 8
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "embedding_dropout",
    "mlp_dropout",
    "attention_dropout",
    "classifier_dropout",
    "pooler_dropout",
    *("dropout", "qa_dropout", "seq_classif_dropout"),  # DistilBERT's
)


def load_config(path: str) -> PreTrainedConfig:
    """The config of an exported folder or an encoder of the hub. Raises ValueError when there is none."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever the files provoke
        raise ValueError(
            f"model = {path!r} has no config that transformers reads ({type(error).__name__}: {error}). Give a run's "
            "export folder, a folder written by save_pretrained, or a name on the hub"
        ) from error
    if not hasattr(config, "hidden_size") or not hasattr(config, "vocab_size"):
        raise ValueError(f"model = {path!r}, a {config.model_type!r}, is no text encoder: give one, or a run's export")
    return config


def load_tokenizer(path: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The model's own tokenizer. Raises ValueError when there is none, or one with more entries than the model has."""
    found = tokenizer.load(path)
    if len(found) > config.vocab_size:
        raise ValueError(
            f"model = {path!r} has embeddings for {config.vocab_size:,} entries and a tokenizer of {len(found):,}: "
            "save the model's own tokenizer beside it"
        )
    found.padding_side = "right"  # places in a row are counted from its first token
    return found


def require_class(path: str, config: PreTrainedConfig, answers: bool) -> None:
    """Raise ValueError unless transformers has a class for this kind of encoder: one that marks answers, or labels."""
    labels, spans = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES
    if config.model_type not in (spans if answers else labels):
        what = "question answering: leave SQuAD out of --tasks" if answers else "text classification"
        raise ValueError(f"model = {path!r}: transformers has no class of a {config.model_type!r} for {what}")


def settings_hash(path: str) -> str:
    """A hash of what, beside its weights, tells what a model in a folder computes; of a hub's its commit tells all.

    What a discriminator calls its one output is no part of that.
    """
    place = Path(path) / "config.json"
    if not place.is_file():
        return ""
    settings = {name: value for name, value in json.loads(place.read_bytes()).items() if name not in _OF_THE_WRITER}
    if settings.get("id2label") == {"0": discriminator.LABEL}:
        settings |= _UNNAMED
    return xxhash.xxh3_128_hexdigest(json.dumps(settings, sort_keys=True).encode())


def identity(path: str, config: PreTrainedConfig) -> str:
    """What tells this model from another under the same name: its commit on the hub, or a hash of its weight files."""
    folder = Path(path)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None))
    files = sorted(file for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind))
    if not files:
        raise ValueError(f"model = {path!r} holds no weights (*.safetensors): give a run's export folder")
    return xxhash.xxh3_128_hexdigest(" ".join(hash_file(file) for file in files).encode())


def fingerprints(path: str, config: PreTrainedConfig, words: PreTrainedTokenizerBase) -> dict[str, str]:
    """What tells results of this model from those of another: its weights, its settings, its tokenizer."""
    own = {"weights": identity(path, config), "model": settings_hash(path)}
    return own | {"tokenizer": tokenizer.fingerprint(words)}


def longest_row(path: str, config: PreTrainedConfig, wanted: int | None, usual: int, trained: int) -> int:
    """Tokens a row: what is `wanted`, or the `usual` number as far as the model has positions and was `trained` to.

    Raises ValueError when more is wanted than the model has.
    """
    available = positions_available(config)
    if wanted is not None and wanted > available:
        raise ValueError(f"max_length = {wanted}: {path!r} has {available} positions; give at most that many")
    return wanted or min(usual, available, max(trained, _LEAST_ROW))


def padding(config: PreTrainedConfig, max_length: int) -> int | None:
    """Rows are padded to a multiple of this, 8, unless the model has no positions for it."""
    return 8 if -(-max_length // 8) * 8 <= positions_available(config) else None


def load(path: str, num_labels: int, max_length: int, seed: int, dropout: float | None = None) -> PreTrainedModel:
    """The encoder at `path` with a head for `num_labels` labels (1: a score; 0: the start and end of an answer).

    The new weights are a function of `seed`. `dropout` None keeps the model's own rates. Raises ValueError when there
    is no such class for this kind of encoder or when a weight of the encoder is not in the checkpoint.
    """
    kind: Any = AutoModelForSequenceClassification if num_labels else AutoModelForQuestionAnswering
    config = load_config(path)
    config.num_labels = num_labels or 2
    if num_labels:
        config.problem_type = "regression" if num_labels == 1 else "single_label_classification"
    for name in _DROPOUTS:
        if dropout is not None and hasattr(config, name):
            setattr(config, name, dropout)
    plain = not torch.cuda.is_available() and max_length <= PLAIN_ATTENTION_TOKENS
    torch.manual_seed(seed)
    try:
        model, info = kind.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager" if plain else None,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            weights_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # as above
        what = "text classification" if num_labels else "question answering"
        raise ValueError(
            f"model = {path!r}, a {config.model_type!r}, cannot be loaded for {what} ({type(error).__name__}: {error})"
            ". Give a folder or a name on the hub of an encoder that transformers has this class for"
        ) from error
    _refuse_new_weights(path, model, info)
    _renew_output(model, seed)
    return model


def _refuse_new_weights(path: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    prefix = model.base_model_prefix + "."
    new = {*info["missing_keys"], *(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])}
    missing = sorted(name for name in new if name.startswith(prefix) and ".pooler." not in name)
    if missing:
        raise ValueError(
            f"model = {path!r}: {len(missing)} weights of the encoder are not in the checkpoint or of another shape "
            f"(first: {missing[0]}), so they would be random. Export the model again, or give its whole folder"
        )


def _renew_output(model: PreTrainedModel, seed: int) -> None:
    """Give the last linear layer, which makes the task's outputs, the weights that a new model of this seed has."""
    inside = {id(module) for module in model.base_model.modules()}
    name = [key for key, one in model.named_modules() if isinstance(one, nn.Linear) and id(one) not in inside][-1]
    torch.manual_seed(seed)
    new: Any = type(model)
    model.get_submodule(name).load_state_dict(new(model.config).get_submodule(name).state_dict())
