"""The measures of GLUE and SQuAD against their definitions, and medians over seeds."""

import json

import numpy as np
import pytest

from fast_electra.evaluation import scores

NAMES = ("accuracy", "f1", "matthews")


def test_classification_measures_follow_their_definitions():
    predictions, labels = np.array([1, 1, 0, 0, 1, 0, 1]), np.array([1, 0, 0, 0, 1, 1, 1])
    tp, fp, fn, tn = 3, 1, 1, 2
    found = scores.glue_metrics(NAMES, predictions, labels)
    assert found["accuracy"] == pytest.approx(100 * (tp + tn) / 7)
    assert found["f1"] == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert found["matthews"] == pytest.approx(100 * (tp * tn - fp * fn) / product**0.5)
    assert scores.glue_metrics(("matthews",), np.ones(7), labels) == {"matthews": 0.0}


def test_correlations_follow_their_definitions_and_a_constant_has_none():
    predictions, labels = np.array([0.1, 0.9, 2.0, 30.0]), np.array([0.0, 1.0, 2.0, 3.0])
    found = scores.glue_metrics(("pearson", "spearman"), predictions, labels)
    assert found["spearman"] == pytest.approx(100)
    x, y = predictions - predictions.mean(), labels - labels.mean()
    assert found["pearson"] == pytest.approx(100 * (x @ y) / ((x @ x) * (y @ y)) ** 0.5)
    assert scores.glue_metrics(("pearson",), np.full(4, 2.5), labels) == {"pearson": 0.0}
    assert scores.glue_metrics(("pearson",), predictions, np.full(4, 3.0)) == {"pearson": 0.0}


def test_squads_answers_are_compared_without_case_articles_and_punctuation():
    truths = {"1": ["the Norman conquest", "1066"], "2": ["Rollo"]}
    assert scores.squad_metrics({"1": "Norman  Conquest!", "2": "rollo"}, truths) == {"f1": 100, "exact_match": 100}
    found = scores.squad_metrics({"1": "conquest of 1066", "2": ""}, truths)  # best of F1 .4 and .5, and 0
    assert found == {"f1": pytest.approx(100 * 0.5 / 2), "exact_match": 0}


def test_no_answer_is_right_where_there_is_none():
    found = scores.squad_metrics({"1": "", "2": "x", "3": "a dog"}, {"1": [], "2": [], "3": ["dog"]})
    assert found["f1"] == found["exact_match"] == pytest.approx(200 / 3)
    assert (found["f1_has_answer"], found["f1_no_answer"]) == (100, 50)


def test_a_true_answer_without_words_counts_as_in_the_official_scripts():
    """2.0 leaves it out; 1.1 takes it for an exact match, and gives no F1 for it."""
    answers, truths = {"a": "", "b": "x"}, {"a": ["interventionism", "."], "b": ["x"]}
    assert scores.squad_metrics(answers, truths) == {"f1": 50, "exact_match": 100}
    found = scores.squad_metrics(answers | {"c": ""}, truths | {"c": []})
    assert found["f1"] == found["exact_match"] == pytest.approx(200 / 3)
    assert (found["f1_has_answer"], found["f1_no_answer"]) == (50, 100)


def test_a_task_counts_with_the_mean_of_its_measures():
    assert scores.score("MRPC", {"f1": 90.0, "accuracy": 80.0}) == 85
    assert scores.score("MNLI", {"accuracy": 80.0, "accuracy_mm": 82.0, "matthews_ax": 1.0}) == 81
    assert scores.score("SQuAD-2.0", {"f1": 70.0, "exact_match": 60.0}) == 70


def test_medians_and_ranges_are_over_all_seeds():
    runs = [
        {"seed": seed, "score": value, "metrics": {"accuracy": value}} for seed, value in ((3, 9.0), (1, 5.0), (2, 6.0))
    ]
    found = scores.over_seeds(runs)["accuracy"]
    assert found == {"median": 6.0, "min": 5.0, "max": 9.0, "seeds": {"1": 5.0, "2": 6.0, "3": 9.0}}
    tasks = {name: scores.over_seeds(runs) for name in scores.AVERAGED}
    assert scores.glue_average(tasks) == 6.0
    assert scores.glue_average({name: one for name, one in tasks.items() if name != "QQP"}) is None
    page = scores.table(tasks, 6.0)
    assert "CoLA       accuracy           6.00   5.00 to 9.00    3" in page and page.endswith("medians: 6.00")
    json.dumps(tasks)
