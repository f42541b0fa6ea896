"""Documents kept apart in packed rows: a token attends within its own document only, and positions begin anew in each.

A packed row is then worth what its documents are, each run alone (Krell et al., arXiv 2107.02027). One tensor says it
all: `position_ids` (B, T), a token's place in its document. A document begins where they are 0, and shapes stay static.

Attention under the plain and the fused kernel gets a block mask, which computes the whole T x T square and saves
nothing. FlexAttention (CUDA) leaves out the blocks in which no two tokens share a document; it is written after torch's
and transformers' documentation and untested on GPU. Stock models take both as `attention_mask`.

The auxiliary model sees what the discriminator sees. One from elsewhere may have been trained across documents; the
gate then says what it predicts without.

Shapes: B rows, T tokens a row.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedConfig, PreTrainedModel

WHOLE_ROWS = torch.empty(0, 0, dtype=torch.int64)  # the `position_ids` of rows whose documents are not kept apart
FLEX = "flex_attention"
FLEX_BLOCK = 128  # tokens: torch's own size of the blocks that it computes or leaves out
_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")  # their positions begin behind the padding's id
SEPARABLE = ("electra", "bert", "modernbert", "deberta-v2", *_AFTER_PADDING)


def places(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place (B, T) of each token in its document, from the number of that document (B, T)."""
    here = np.arange(documents.shape[1])
    begins = np.diff(documents, axis=1, prepend=-1) != 0
    return here - np.maximum.accumulate(np.where(begins, here, 0), axis=1)


def require_separable(config: PreTrainedConfig, name: str) -> None:
    """Raise ValueError for a model, called `name`, that would look across a document's end all the same."""
    if config.model_type not in SEPARABLE or getattr(config, "conv_kernel_size", 0) > 0:
        why = "has a convolution" if config.model_type in SEPARABLE else f"is a {config.model_type}"
        raise ValueError(
            f"data.separate_documents = true: {name} {why}, for which documents cannot be kept apart; choose another "
            f"({', '.join(SEPARABLE)}), or leave documents together"
        )


def prepare(model: PreTrainedModel) -> None:
    """Have a stock model take the masks of `inputs`.

    DeBERTa-v2 multiplies its embeddings by the mask that it is given, to blank padding out; rows here have none, and a
    mask of pairs of tokens does not fit.
    """
    if model.config.model_type == "deberta-v2":
        embeddings: Any = model.base_model.embeddings
        embeddings.register_forward_pre_hook(_leave_mask_out, with_kwargs=True)


def _leave_mask_out(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"mask": None}


def inputs(model: PreTrainedModel, position_ids: Tensor) -> dict[str, Any]:
    """What a stock model is called with beside its tokens; for `WHOLE_ROWS` nothing, or word that there is no mask.

    Left to itself under torch.compile, transformers 5.17 builds a mask that hides nothing, and fused attention is lost
    for it. ModernBERT alone takes such word.
    """
    if position_ids.numel() == 0:
        unwindowed = model.config.model_type == "modernbert" and set(model.config.layer_types) == {"full_attention"}
        return {"attention_mask": {"full_attention": None}} if unwindowed else {}
    config, documents = model.config, (position_ids == 0).cumsum(dim=1)
    first = config.pad_token_id + 1 if config.model_type in _AFTER_PADDING else 0
    if config.model_type == "modernbert":
        windows = {"full_attention": documents.shape[1], "sliding_attention": config.sliding_window}
        mask: Any = {kind: _mask(model, documents, windows[kind]) for kind in set(config.layer_types)}
    else:
        mask = _mask(model, documents, documents.shape[1])
    return {"attention_mask": mask, "position_ids": position_ids + first}


def _mask(model: PreTrainedModel, documents: Tensor, window: int) -> Tensor | BlockMask:
    """Who sees whom: tokens of the same of `documents` (B, T), no further than `window` apart."""
    rows, length = documents.shape
    if model.config._attn_implementation == FLEX:

        def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (documents[row, query] == documents[row, key]) & ((query - key).abs() <= window)

        return create_block_mask(sees, rows, None, length, length, device=documents.device)
    here = torch.arange(length, device=documents.device)
    near = (here[:, None] - here).abs() <= window
    together = near & (documents[:, None, :, None] == documents[:, None, None, :])  # (B, 1, T, T)
    if model.config.model_type == "deberta-v2":
        return together
    dtype = next(model.parameters()).dtype
    return torch.zeros(together.shape, dtype=dtype, device=together.device).masked_fill_(
        ~together, torch.finfo(dtype).min
    )
