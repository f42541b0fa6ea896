import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoModelForTokenClassification,
    BertConfig,
    CamembertConfig,
    ElectraForPreTraining,
    LongformerConfig,
    MPNetConfig,
    XLMRobertaConfig,
)

from fast_electra.models import discriminator
from fast_electra.models.discriminator import ReplacedTokenDetection
from fast_electra.models.encoder import attention_kernel, positions_available, transformers_config
from fast_electra.settings.config import EncoderConfig


def shape_of(kind, tokenizer):
    return transformers_config(EncoderConfig(kind, 2, 32, 2, 48, max_positions=64), tokenizer)


@pytest.mark.parametrize("kind", ["electra", "modernbert", "bert", "roberta", "deberta-v2"])
def test_every_encoder_type_gives_a_logit_per_token_from_its_stock_class(kind, tiny_tokenizer):
    model = discriminator.build(shape_of(kind, tiny_tokenizer), "eager", torch.float32)
    stock = (
        ElectraForPreTraining
        if kind == "electra"
        else AutoModelForTokenClassification._model_mapping[type(model.config)]
    )
    assert type(model) is stock
    ids = torch.randint(5, len(tiny_tokenizer), (3, 16))
    loss, logits = ReplacedTokenDetection(model)(ids, torch.zeros(3, 16, dtype=torch.uint8))
    assert logits.shape == (3, 16)
    assert loss.shape == ()
    assert positions_available(model.config) == 64


@pytest.mark.parametrize("kind", [CamembertConfig, MPNetConfig, XLMRobertaConfig, LongformerConfig, BertConfig])
def test_a_model_takes_as_many_tokens_as_it_has_positions_and_no_more(kind):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}
    config = kind(vocab_size=64, max_position_embeddings=40, pad_token_id=1, **sizes)
    model, longest = AutoModel.from_config(config).eval(), positions_available(config)
    model(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


def test_the_loss_is_the_mean_over_all_tokens_that_are_not_padding(tiny_tokenizer):
    torch.manual_seed(0)
    model = discriminator.build(shape_of("electra", tiny_tokenizer), "eager", torch.float32).eval()
    ids = torch.randint(5, len(tiny_tokenizer), (3, 16))
    ids[1, 10:] = tiny_tokenizer.pad_token_id
    labels = (torch.rand(3, 16) < 0.2).to(torch.uint8)
    loss, logits = ReplacedTokenDetection(model)(ids, labels)
    real = ids != tiny_tokenizer.pad_token_id
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits[real], labels[real].float()))


def test_labels_of_padding_change_nothing():
    logits, counted = torch.randn(2, 4), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    labels = torch.randint(0, 2, (2, 4))
    other = torch.where(counted, labels, 1 - labels)
    assert discriminator.loss(logits, labels, counted) == discriminator.loss(logits, other, counted)


def test_short_rows_on_a_cpu_take_plain_attention_unless_told_otherwise():
    cpu, encoder = torch.device("cpu"), EncoderConfig()
    assert attention_kernel(encoder, 64, cpu, torch.float32) == "eager"
    assert attention_kernel(encoder, 512, cpu, torch.float32) == "sdpa"
    assert attention_kernel(encoder, 64, torch.device("cuda"), torch.bfloat16) == "sdpa"
    assert attention_kernel(EncoderConfig(attention="sdpa"), 64, cpu, torch.float32) == "sdpa"


@pytest.mark.parametrize(
    ("changes", "kernel"),
    [
        ({}, "flex_attention"),
        ({"attention_dropout": 0.1}, "sdpa"),
        ({"num_heads": 96}, "sdpa"),
        ({"attention": "sdpa"}, "sdpa"),
        ({"model_type": "deberta-v2"}, "eager"),
    ],
)
def test_flex_attention_is_taken_on_cuda_where_it_can_keep_documents_apart(changes, kernel):
    encoder, cuda, bf16 = EncoderConfig(**changes), torch.device("cuda"), torch.bfloat16
    assert attention_kernel(encoder, 512, cuda, bf16, True) == kernel
    assert attention_kernel(encoder, 128, cuda, bf16, True) in (kernel, "sdpa")
    assert attention_kernel(encoder, 128, cuda, bf16, True) != "flex_attention"
    assert attention_kernel(encoder, 512, torch.device("cpu"), torch.float32, True) in ("sdpa", "eager")


@pytest.mark.parametrize("kind", ["electra", "modernbert"])
def test_both_attention_kernels_give_the_same_logits(kind, tiny_tokenizer):
    shape = shape_of(kind, tiny_tokenizer)
    ids = torch.randint(5, len(tiny_tokenizer), (2, 16))
    logits = []
    for kernel in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = discriminator.build(shape, kernel, torch.float32).eval()
        assert model.config._attn_implementation == kernel
        logits.append(model(input_ids=ids).logits)
    torch.testing.assert_close(*logits)
