"""The official measures of GLUE and SQuAD, all from 0 to 100, and medians over seeds.

The measures are scikit-learn's, SciPy's and torchmetrics' (SQuAD's own normalisation of answers). A task with two
measures counts with their mean, as GLUE's leaderboard does; GLUE's average is over its eight tasks without WNLI.
"""

import statistics
import string
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
AVERAGED = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE")


def glue_metrics(names: tuple[str, ...], predictions: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """The named measures of predicted label numbers (or scores) against the true ones.

    A correlation with predictions or labels that are all the same does not exist and counts 0, as Matthews' does by
    definition.
    """
    from scipy import stats  # seconds of imports that other launchers need not wait for
    from sklearn import metrics

    def correlation(measure: Callable[..., Any]) -> float:
        return 0.0 if 0 in (np.ptp(predictions), np.ptp(labels)) else float(measure(predictions, labels).statistic)

    measures: dict[str, Callable[[], float]] = {
        "accuracy": lambda: metrics.accuracy_score(labels, predictions),
        "f1": lambda: metrics.f1_score(labels, predictions),
        "matthews": lambda: metrics.matthews_corrcoef(labels, predictions),
        "pearson": lambda: correlation(stats.pearsonr),
        "spearman": lambda: correlation(stats.spearmanr),
    }
    return {name: 100.0 * float(measures[name]()) for name in names}


def squad_metrics(answers: dict[str, str], truths: dict[str, list[str]]) -> dict[str, float]:
    """Exact match and F1 of the answers (an id each) against one or more true ones; none: no answer is the true one.

    Where some questions have no answer (SQuAD 2.0), F1 on those that have one and on those that have none is told too.
    """
    with_answer = {key for key, texts in truths.items() if texts}
    found = _exact_and_f1(answers, truths, set(truths))
    if with_answer and with_answer != set(truths):
        found["f1_has_answer"] = _exact_and_f1(answers, truths, with_answer)["f1"]
        found["f1_no_answer"] = _exact_and_f1(answers, truths, set(truths) - with_answer)["f1"]
    return found


def _exact_and_f1(answers: dict[str, str], truths: dict[str, list[str]], keys: set[str]) -> dict[str, float]:
    from torchmetrics.functional.text import squad

    def measured(of: dict[str, list[str]]) -> dict[str, Any]:
        targets: Any = [{"id": key, "answers": {"text": of[key] or [""], "answer_start": [0]}} for key in sorted(keys)]
        return squad([{"id": key, "prediction_text": answers[key]} for key in sorted(keys)], targets)

    # A true answer such as "." has no words. SQuAD 2.0's script leaves it out, 1.1's has no F1 with it.
    worded = {key: [text for text in truths[key] if _has_words(text)] for key in keys}
    found = measured(worded)
    all_have_answers = all(truths.values())
    exact = measured(truths) if all_have_answers else found
    return {"f1": float(found["f1"]), "exact_match": float(exact["exact_match"])}


def _has_words(text: str) -> bool:
    """Whether SQuAD's normalisation leaves any word."""
    return any(word not in ("a", "an", "the") for word in text.lower().translate(_NO_PUNCTUATION).split())


def score(task: str, metrics: dict[str, float]) -> float:
    """The one number a task counts with: SQuAD's F1, the mean of a GLUE task's measures (the diagnostics left out)."""
    if task.startswith("SQuAD"):
        return metrics["f1"]
    return statistics.mean(value for name, value in metrics.items() if not name.endswith("_ax"))


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, range and every seed's value of each measure and of the score of one task's runs."""
    values: dict[str, dict[str, float]] = {}
    for run in sorted(runs, key=lambda one: one["seed"]):
        for name, value in {"score": run["score"], **run["metrics"]}.items():
            values.setdefault(name, {})[str(run["seed"])] = value
    return {
        name: {
            "median": statistics.median(by_seed.values()),
            "min": min(by_seed.values()),
            "max": max(by_seed.values()),
            "seeds": by_seed,
        }
        for name, by_seed in values.items()
    }


def glue_average(tasks: dict[str, dict[str, Any]]) -> float | None:
    """The mean of the eight tasks' median scores; None while one is missing."""
    if not all(name in tasks for name in AVERAGED):
        return None
    return statistics.mean(tasks[name]["score"]["median"] for name in AVERAGED)


def table(tasks: dict[str, dict[str, Any]], average: float | None) -> str:
    """Medians and ranges for a person to read, GLUE's average below if there is one."""
    lines = [f"{'task':<11}{'measure':<15}{'median':>8}   {'range':<16}seeds"]
    for task, measures in tasks.items():
        for name, found in measures.items():
            if name != "score":
                spread = f"{found['min']:.2f} to {found['max']:.2f}"
                lines.append(f"{task:<11}{name:<15}{found['median']:>8.2f}   {spread:<16}{len(found['seeds'])}")
    return "\n".join(lines) + ("" if average is None else f"\nGLUE, mean of eight tasks' medians: {average:.2f}")
