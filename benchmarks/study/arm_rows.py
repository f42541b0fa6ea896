"""An arm as a row: what its run learned, by the judges and BLiMP, and what was spent on it."""

import json
from pathlib import Path

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.study import arms, masked_lms
from benchmarks.study.arm_runs import Study, settings
from benchmarks.study.arms import Arm

FORMULA = (
    "flops: FLOPs a token of training (backward = 2 x forward) x tokens of the run; flops_auxiliary: of the training "
    "of the masked LMs it samples from and begins with and, for replay, of the pass over the corpus; blimp: mean "
    "over paradigms of the share of pairs whose good sentence scores higher; judge_auc, judge_loss, floor, "
    "judge_accuracy: on held-out rows with one judge's masks and samples at T = 1 for all arms; second_judge_*: with "
    "another's; auxiliary_accuracy: of the gate, on few rows"
)
# In a run folder: the code that trained it, which is not always the code that judges it.
_TRAINED = "trained.json"


def note_origin(study: Study, arm: Arm, seed: int, earlier: bool) -> None:
    """Write down in its folder what code trained a run: this, or, of one that ended `earlier`, what its row says."""
    noted = study.run(arm.name, seed) / _TRAINED
    if not noted.exists():
        partial = noted.with_name(_TRAINED + ".part")
        partial.write_text(json.dumps(_known_origin(study, arm, seed) if earlier else _origin()))
        partial.replace(noted)


def _known_origin(study: Study, arm: Arm, seed: int) -> Row:
    """The origin of a run that an earlier study trained: its row's, unknown where it has none."""
    asked, now = identity(study, arm, seed), _origin()
    found = rows.read(study.rows) if study.rows.exists() else []
    same = [row for row in found if all(row.get(name) == value for name, value in asked.items())]
    return {name: same[-1].get(name) for name in now} if same else dict.fromkeys(now, "unknown")


def _origin() -> Row:
    """Of a run that is trained now: the code, the machine, and in what gradients are summed over tokens; rows without
    word of that are of code that summed those of norms and tables in the run's dtype (exact_sums.py)."""
    return {**rows.provenance("quality"), "token_sums": "float32"}


def scored(study: Study, arm: Arm, run: Path) -> bool:
    """Whether the run has the scores of all judges that there are."""
    path = run / "scores.json"
    return path.exists() and (not study.judges_twice(arm) or "second" in json.loads(path.read_text()))


def identity(study: Study, arm: Arm, seed: int) -> Row:
    """What tells a row from others."""
    named = {"arm": arm.name, "group": arm.group, "objective": arm.objective, "seed": seed, "scale": study.scale_name}
    return {"kind": "quality", **named, "recipe": " ".join(settings(study, arm, seed))}


def diverged(study: Study, arm: Arm, seed: int, message: str) -> Row:
    """The row of an arm whose numbers went wrong."""
    origin = {"formula": FORMULA, "n": 1, **rows.provenance("quality")}
    return {**identity(study, arm, seed), "diverged": message.removeprefix("error: ").partition(":")[0], **origin}


def row(study: Study, arm: Arm, seed: int) -> Row:
    """The row of an arm whose run and scores are done."""
    run = study.run(arm.name, seed)
    summary, scores = (json.loads((run / name).read_text()) for name in ("summary.json", "scores.json"))
    judged, found, second = scores["judged"], scores["blimp"] or {}, scores.get("second") or {}
    flops, auxiliary_flops = summary["flops_per_token"] * summary["tokens"], _auxiliary_flops(study, arm, seed)
    own = {"judge_auc": "roc_auc", "judge_loss": "loss", "floor": "floor", "judge_accuracy": "accuracy"}
    return {
        **identity(study, arm, seed),
        "steps": summary["steps"],
        "tokens": summary["tokens"],
        "weights": summary["weights"],
        "auxiliary": arm.auxiliary or None,
        "auxiliary_accuracy": summary.get("auxiliary_top1"),
        "auxiliary_weights": _auxiliary_weights(study, arm, summary),
        "initial_weights": summary.get("initial_weights"),
        "judge_weights": scores.get("judge_weights"),
        "flops": flops,
        "flops_auxiliary": auxiliary_flops,
        "flops_with_auxiliary": flops + auxiliary_flops,
        **{name: judged.get(source) for name, source in own.items()},
        "second_judge_auc": second.get("roc_auc"),
        "second_judge_loss": second.get("loss"),
        "second_judge_weights": second.get("judge_weights"),
        "blimp": found.get("accuracy"),
        **{f"blimp_{name}": found.get(name) for name in ("pairs", "variants", "fields", "seconds_per_1000_pairs")},
        "glue": _glue(run),
        "curve": _curve(run),
        "tokens_per_second": summary["tokens_per_second"],
        "machine_shared": True,
        "dtype": summary["dtype"],
        "formula": FORMULA,
        "n": 1,
        **json.loads((run / _TRAINED).read_text()),
        "judged_by": rows.commit(),
    }


def _auxiliary_weights(study: Study, arm: Arm, summary: Row) -> str | None:
    used = summary.get("auxiliary_weights")
    return used and masked_lms.fingerprint(study.masked_lm(arm.auxiliary) / "export", used, summary["dtype"])


def _auxiliary_flops(study: Study, arm: Arm, seed: int) -> float:
    """What was spent on the masked LMs that it samples from or begins with: their training and, for replay, the pass
    over the whole corpus."""
    spent = 0.0
    for name in sorted(arms.masked_lms(arm)):
        of = json.loads((study.masked_lm(name) / "summary.json").read_text())
        spent += of["flops_per_token"] * of["tokens"]
    if arm.objective == "replay":
        made = json.loads((study.run("paths", seed) / "manifest.json").read_text())["provenance"]
        tokens = made["num_rows"] * made["num_draws"] * made["sequence_length"]
        spent += of["flops_per_token"] / 3 * tokens  # a forward pass is a third of a training step
    return float(spent)


def _glue(run: Path) -> dict[str, float] | None:
    """The score of each task that the run was fine-tuned on."""
    path = run / "glue" / "results.json"
    if not path.exists():
        return None
    return {name: found["score"]["median"] for name, found in json.loads(path.read_text())["tasks"].items()}


def _curve(run: Path) -> list[dict[str, float]]:
    """The evaluations on the run's own held-out rows: step, and what was measured."""
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = ("loss", "floor", "roc_auc", "accuracy", "blimp")
    return [
        {"step": each["step"]} | {name: each["held_out"][name] for name in wanted if name in each["held_out"]}
        for each in logged
        if "held_out" in each
    ]
