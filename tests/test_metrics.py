import math

import pytest
import torch
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from fast_electra.methods import metrics


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(40, 64, generator=generator) < 0.1).to(torch.uint8)
    logits = torch.randn(40, 64, generator=generator) * 2 + labels * 1.5 - 1
    return logits, labels, torch.ones_like(labels, dtype=torch.bool)


def test_metrics_agree_with_scikit_learn(example):
    logits, labels, _ = example
    report = metrics.rtd_report(metrics.rtd_counts(*example), masked_share=0.15)
    flat, scores = labels.flatten().numpy(), logits.flatten().numpy()
    assert report["roc_auc"] == pytest.approx(roc_auc_score(flat, scores), abs=2e-4)
    assert report["precision"] == pytest.approx(precision_score(flat, scores > 0))
    assert report["recall"] == pytest.approx(recall_score(flat, scores > 0))
    assert report["loss"] == pytest.approx(
        float(torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float()))
    )
    assert report["auxiliary_accuracy"] == pytest.approx(1 - float(labels.float().mean()) / 0.15)


def test_counts_of_parts_add_up_to_the_counts_of_the_whole(example):
    logits, labels, counted = example
    whole = metrics.rtd_counts(logits, labels, counted)
    parts = sum(metrics.rtd_counts(logits[i::3], labels[i::3], counted[i::3]) for i in range(3))
    torch.testing.assert_close(whole, parts)


def test_tokens_that_do_not_count_change_nothing(example):
    logits, labels, counted = example
    counted = counted.clone()
    counted[:, 50:] = False
    changed = logits.clone()
    changed[:, 50:] = 9.0
    torch.testing.assert_close(
        metrics.rtd_counts(changed, labels, counted),
        metrics.rtd_counts(logits[:, :50], labels[:, :50], counted[:, :50]),
    )


def test_the_floor_is_the_entropy_of_the_replaced_share():
    """FACTS of the field: 15 % masked and an auxiliary accuracy of .5, .6, .65 give .266, .227, .206."""
    for accuracy, floor in ((0.5, 0.266), (0.6, 0.227), (0.65, 0.206)):
        assert metrics.binary_entropy(0.15 * (1 - accuracy)) == pytest.approx(floor, abs=1e-3)
    assert metrics.binary_entropy(0.0) == 0.0


def test_the_area_is_one_half_without_knowledge_and_one_with_all_of_it():
    labels = torch.tensor([[0, 1, 0, 1]], dtype=torch.uint8)
    counted = torch.ones_like(labels, dtype=torch.bool)

    def area(logits):
        return metrics.rtd_report(metrics.rtd_counts(logits, labels, counted), 0.5)["roc_auc"]

    assert area(torch.zeros(1, 4)) == 0.5
    assert area(torch.tensor([[-1.0, 1.0, -2.0, 3.0]])) == 1.0
    assert area(torch.tensor([[100.0, -100.0, 50.0, -50.0]])) == 0.0


def test_the_area_is_undefined_when_nothing_was_replaced():
    zeros = torch.zeros(1, 4)
    counts = metrics.rtd_counts(zeros, zeros.to(torch.uint8), zeros == 0)
    assert math.isnan(metrics.rtd_report(counts, 0.15)["roc_auc"])


def test_masked_lm_counts_give_loss_and_accuracy():
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 5.0]]])
    targets = torch.tensor([[0, 1]])
    expected = torch.nn.functional.cross_entropy(logits[0], targets[0])
    report = metrics.mlm_report(metrics.mlm_counts(expected, logits, targets))
    assert report == pytest.approx({"loss": float(expected), "accuracy": 0.5})
