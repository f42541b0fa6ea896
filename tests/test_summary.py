"""The page that a run ends with."""

from fast_electra.runs import summary

FACTS = {
    "recipe": "demo.auxiliary",
    "objective": "mlm",
    "loss": 6.162,
    "accuracy": 0.0502,
    "most_frequent_share": 0.0517,
    "gate_accuracy": 0.0533,
    "steps": 60,
    "tokens": 61_440,
    "weights": 1_000,
    "seconds": 9.0,
    "num_processes": 1,
    "tokens_per_second": 7_000.0,
    "mfu": 0.5,
    "measured_peak_tflops": 0.07,
    "dtype": "float32",
    "peak_memory_gib": 0.5,
    "export": "runs/aux/export",
    "export_logit_difference": 0.0,
    "model_class": "ModernBertForMaskedLM",
}


def test_a_masked_lm_is_seen_beside_the_most_frequent_token_and_told_where_the_gate_would_refuse_it():
    page = summary.describe(FACTS)
    assert "5.0% of held-out masked tokens predicted (the most frequent token: 5.2%)" in page
    assert "the gate would refuse" in page
    assert "the gate would refuse" not in summary.describe(FACTS | {"accuracy": 0.054})
    earlier = {name: value for name, value in FACTS.items() if name != "gate_accuracy"}
    assert "most frequent" not in summary.describe(earlier), "a run of an earlier version says nothing of it"


def test_a_discriminators_page_says_what_its_logits_are():
    rtd = {"objective": "random", "floor": 0.4, "roc_auc": 0.7, "model_class": "ModernBertForTokenClassification"}
    assert ".logits.sigmoid()" in summary.describe(FACTS | rtd)
    assert ".sigmoid()" not in summary.describe(FACTS)
