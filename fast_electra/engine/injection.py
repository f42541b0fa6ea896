"""The auxiliary model on DeepSpeed-Inference's CUDA kernels: BERT, RoBERTa and ELECTRA layers under transformers 5.

DeepSpeed knows the layers of BERT and RoBERTa as they were in transformers 4. ELECTRA's have the same parts and join
them here; a layer gives a tensor now instead of a tuple; and a mask is turned into what the kernels read, additive and
of their type, because they take the bytes of any other for it. The kernels' workspace is sized by the first batch and
never checked again, so that the largest goes first and a larger one is refused. Their GELU is the tanh form, which
differs from the erf form by less than bf16 rounds. One process can hold one injected model.

On an H200 the kernels, built in 69 s, ran ELECTRA's layers in twice the plain engine's time (LOG.md); BERT's and
RoBERTa's are untested on GPU. Tests run the layers with a stand-in for DeepSpeed's operator.
"""

from typing import Any

import deepspeed
import torch
from deepspeed.model_implementations.transformers.ds_transformer import DeepSpeedTransformerInference
from deepspeed.module_inject.containers import HFBertLayerPolicy
from deepspeed.ops.transformer.inference.ds_attention import DeepSpeedSelfAttention
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.electra.modeling_electra import ElectraLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer

from fast_electra.batching.separation import FLEX, WHOLE_ROWS

LAYERS = {"bert": BertLayer, "roberta": RobertaLayer, "electra": ElectraLayer}
_GELUS = ("gelu", "gelu_new", "gelu_pytorch_tanh")
_MOST_TOKENS, _MOST_WIDTH = 8192, 8192


class NotInjectedError(ValueError):
    """DeepSpeed's kernels cannot run this model, and why."""


class Injected(nn.Module):
    """A masked LM whose layers run on the kernels, for batches (B, T) of at most `rows` x `length`."""

    def __init__(self, engine: nn.Module, rows: int, length: int) -> None:
        super().__init__()
        self.engine, self.rows, self.length = engine, rows, length

    def forward(self, input_ids: Tensor, positions: Tensor, position_ids: Tensor = WHOLE_ROWS) -> Tensor:
        """Vocabulary logits (B, N, V). Raises ValueError for a batch that the workspace has no room for."""
        if len(input_ids) > self.rows or input_ids.shape[1] > self.length:
            raise ValueError(
                f"a batch of {tuple(input_ids.shape)} tokens: the kernels' workspace was made for ({self.rows}, "
                f"{self.length}) and would be overrun; take auxiliary_engine = plain"
            )
        return self.engine(input_ids, positions, position_ids)


def inject(module: nn.Module, config: PreTrainedConfig, dtype: torch.dtype, rows: int, length: int) -> Injected:
    """DeepSpeed's kernels in place of the layers of `module`, a MaskedLM that is changed; warmed up.

    Raises NotInjectedError for a model that they cannot run, and where DeepSpeed cannot build or load them.
    """
    _require_supported(config, length)
    # What an earlier model left that was injected, or failed to be half-way: the layers count themselves.
    DeepSpeedTransformerInference.layer_id = DeepSpeedSelfAttention.num_layers = 0
    DeepSpeedTransformerInference.workspace = None
    HFBertLayerPolicy(None)  # fills its list of layers
    known = HFBertLayerPolicy._orig_layer_class
    known += [layer for layer in LAYERS.values() if layer not in known]
    try:
        engine = deepspeed.init_inference(
            module, dtype=dtype, replace_with_kernel_inject=True, max_out_tokens=max(length, 1)
        )
    except Exception as error:  # DeepSpeed's own class for a machine without nvcc is a plain Exception
        raise NotInjectedError(f"DeepSpeed could not load its kernels ({error})") from error
    layers = [each for each in engine.modules() if isinstance(each, DeepSpeedTransformerInference)]
    if len(layers) != config.num_hidden_layers:
        raise NotInjectedError(f"DeepSpeed replaced {len(layers)} of {config.num_hidden_layers} layers")
    for layer in layers:
        layer.config.return_tuple = False
        layer.register_forward_pre_hook(_as_the_kernels_read)
    injected = Injected(engine, rows, length)
    device = next(module.parameters()).device
    tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
    with torch.no_grad():
        injected(tokens, tokens[:, :1])
    return injected


def _require_supported(config: PreTrainedConfig, length: int) -> None:
    if config.model_type not in LAYERS:
        raise NotInjectedError(f"they know {', '.join(LAYERS)}, not {config.model_type}")
    if config._attn_implementation == FLEX:
        raise NotInjectedError("they read no block-sparse mask, by which FlexAttention keeps documents apart")
    if config.hidden_act not in _GELUS:
        raise NotInjectedError(f"they compute GELU, not {config.hidden_act}")
    width, heads = config.hidden_size, config.num_attention_heads
    if width % 8 or (width // heads) % 8 or width > _MOST_WIDTH or config.intermediate_size != 4 * width:
        raise NotInjectedError(
            f"hidden_size = {width}, num_attention_heads = {heads}, intermediate_size = {config.intermediate_size}: "
            f"they need a width that is a multiple of 8 in each head, at most {_MOST_WIDTH}, and 4 times it between"
        )
    if length > _MOST_TOKENS:
        raise NotInjectedError(f"{length} tokens a row: they take {_MOST_TOKENS}")


def _as_the_kernels_read(_layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The layer's arguments with its mask, a bool where True may be seen, as an additive one."""
    hidden, *rest = args
    if not rest or rest[0] is None:
        return args
    mask, *rest = rest
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill_(~mask, torch.finfo(hidden.dtype).min)
    return hidden, mask.to(hidden.dtype).contiguous(), *rest
