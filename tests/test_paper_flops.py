"""google-research/electra's conventions give the totals that the ELECTRA paper prints."""

import pytest
from transformers import ElectraConfig

from fast_electra.costs.paper_flops import paper_training_flops


def electra(hidden: int, layers: int, embedding: int) -> ElectraConfig:
    return ElectraConfig(
        vocab_size=30522,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        embedding_size=embedding,
    )


@pytest.mark.parametrize(
    ("discriminator", "generator", "steps", "batch", "length", "published"),
    [
        (electra(768, 12, 768), electra(256, 12, 768), 766_000, 256, 512, 6.4e19),
        (electra(1024, 24, 1024), electra(256, 24, 1024), 400_000, 2048, 512, 7.1e20),
        (electra(256, 12, 128), electra(64, 12, 128), 1_000_000, 128, 128, 1.29e18),
    ],
    ids=["base", "large", "small"],
)
def test_paper_conventions_give_the_paper_totals(
    discriminator: ElectraConfig, generator: ElectraConfig, steps: int, batch: int, length: int, published: float
) -> None:
    total = paper_training_flops(
        discriminator, generator, sequences=steps * batch, sequence_length=length, num_masked=length * 80 // 512
    )
    assert total == pytest.approx(published, rel=0.005)
