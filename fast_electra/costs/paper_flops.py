"""Training FLOPs as the ELECTRA paper counts them, to compare with the figures it prints and with nothing else.

The conventions of google-research/electra's `flops_computation.py`, which differ from `fast_electra.costs.model_flops`:
  - the backward pass counts as one forward pass, not two;
  - embedding look-ups are products with one-hot vectors, over the whole vocabulary;
  - biases, activations, softmax, normalisation, dropout and residual additions count.
Its figures for base, large and small (6.4e19, 7.1e20, 1.29e18) come out within 0.5 % (tests/test_flops.py). They are no
measure of time: by them the base generator's look-up of one token costs as much as 22 of its layers.

H hidden size, E embedding size, V vocabulary, T tokens a row.
"""

from transformers import ElectraConfig

# Operations an element: mean, variance (two), scale and bias; GELU by tanh; mask drawn, compared, applied, rescaled.
_LAYER_NORM, _ACTIVATION, _DROPOUT = 5, 8, 4
_SOFTMAX = 5  # maximum, subtraction, exponential, sum, division


def paper_training_flops(
    discriminator: ElectraConfig,
    generator: ElectraConfig,
    *,
    sequences: int,
    sequence_length: int,
    num_masked: int,
) -> float:
    """FLOPs of joint training over `sequences` (steps x batch) rows of T tokens, `num_masked` of them predicted."""
    predicted_share = num_masked / sequence_length
    per_token = (
        _encoder(discriminator, sequence_length)
        + _encoder(generator, sequence_length)
        + _rtd_head(discriminator)
        + predicted_share * _lm_head(generator)
    )
    return 2.0 * per_token * sequences * sequence_length


def _encoder(config: ElectraConfig, sequence_length: int) -> int:
    """Embeddings and all layers, forward, for each token."""
    hidden, inner, embedding = config.hidden_size, config.intermediate_size, config.embedding_size
    products = 2 * (4 * hidden * hidden + 2 * hidden * sequence_length + 2 * hidden * inner)
    biases = 5 * hidden + inner
    # One score for each head and position: scale, softmax, dropout.
    scores = (1 + _SOFTMAX + _DROPOUT) * config.num_attention_heads * sequence_length
    sublayer_ends = 2 * (_DROPOUT + 1 + _LAYER_NORM) * hidden  # dropout, residual, normalisation; two sub-layers
    layer = products + biases + scores + sublayer_ends + _ACTIVATION * inner
    one_hot = 2 * embedding * (config.vocab_size + sequence_length + 2)  # words, positions, two segments
    look_up = one_hot + (2 + _LAYER_NORM + _DROPOUT) * embedding
    projection = 2 * embedding * hidden + hidden if embedding != hidden else 0
    return look_up + projection + config.num_hidden_layers * layer


def _rtd_head(config: ElectraConfig) -> int:
    """A hidden layer and one logit, forward, for each token."""
    return 2 * config.hidden_size**2 + (1 + _ACTIVATION + 2) * config.hidden_size


def _lm_head(config: ElectraConfig) -> int:
    """A hidden layer, V logits, softmax and the choice of the target word, forward, for each predicted position."""
    hidden, embedding, vocabulary = config.hidden_size, config.embedding_size, config.vocab_size
    transform = 2 * hidden * embedding + (1 + _ACTIVATION + _LAYER_NORM) * embedding
    return transform + (2 * embedding + _SOFTMAX + 2) * vocabulary
