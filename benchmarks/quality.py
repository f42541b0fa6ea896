"""The quality study: every arm pre-trained by the ordinary launcher, judged, written as one row (study/arms.py).

    python -m benchmarks.quality --corpus data/study --blimp data/blimp [--scale 4x128] [--only frozen mlm] [--list]

With --glue FOLDER the main arms are fine-tuned besides, also those that have a row without it: one seed of each of
GLUE_TASKS, on at most GLUE_ROWS rows.
Killed and started again it goes on: arms that have a row are skipped, and a run that was cut short goes on from its
checkpoint. On the corpus of the committed rows it samples from, and is judged by, the masked LMs they were made with
(study/masked_lms.py). With --jobs N, N arms run beside each other, each on its share of the cores. Rows are
written as they come.
An arm whose numbers go wrong is a row too (`diverged`). Main arms whose runs are still here are judged once more when
the second judge has been trained (arms.SECOND_JUDGE).
"""

import argparse
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.study import arms, masked_lms
from benchmarks.study.arms import Arm, Scale

FORMULA = (
    "flops: FLOPs a token of training (backward = 2 x forward) x tokens of the run; flops_auxiliary: of the training "
    "of the masked LMs it samples from and begins with and, for replay, of the pass over the corpus; blimp: mean "
    "over paradigms of the share of pairs whose good sentence scores higher; judge_auc, judge_loss, floor, "
    "judge_accuracy: on held-out rows with one judge's masks and samples at T = 1 for all arms; second_judge_*: with "
    "another's; auxiliary_accuracy: of the gate, on few rows"
)
GLUE_TASKS, GLUE_ROWS = ("CoLA", "SST-2", "MRPC", "STS-B", "RTE"), 2_000
_DIVERGED = "the numbers have gone wrong"
# In a run folder: the code that trained it, which is not always the code that judges it.
_TRAINED = "trained.json"


@dataclass(frozen=True)
class Study:
    """Where a study reads and writes."""

    scale_name: str
    corpus: str
    blimp: str
    folder: Path
    rows: Path
    glue: str = ""
    deepspeed: str = "ds_configs/zero1.json"

    @property
    def scale(self) -> Scale:
        """Its size."""
        return arms.SCALES[self.scale_name]

    def run(self, name: str, seed: int) -> Path:
        """The run folder of an arm and seed."""
        return self.folder / self.scale_name / f"{name}-{seed}"

    def fine_tunes(self, arm: Arm) -> bool:
        """Whether the arm is to be fine-tuned."""
        return bool(self.glue) and arm.group in ("main", "control")

    def judges_twice(self, arm: Arm) -> bool:
        """Whether the arm is for the second judge too, and that has been trained."""
        asked = arm.group in ("main", "control", "long") and arm.objective != "mlm"
        return asked and _ended(self, *arms.SECOND_JUDGE)

    def masked_lm(self, name: str) -> Path:
        """The run folder of a masked LM that arms sample from or begin with."""
        return self.run(name, arms.AUXILIARY_SEED)


def settings(study: Study, arm: Arm, seed: int) -> list[str]:
    """What tells the arm's run, as options of launchers/pretrain.py, its folder left out."""
    chosen: dict[str, object] = {**arms.overrides(arm, seed, study.scale), "corpus": study.corpus}
    if arm.objective in ("frozen", "two_stage"):
        chosen["auxiliary"] = study.masked_lm(arm.auxiliary) / "export"
    if arm.begins:
        chosen["initial_weights"] = study.masked_lm(arm.begins) / "export"
    if arm.objective == "replay":
        chosen["replacements"] = study.run("paths", seed)
    return [f"--{name}={value}" for name, value in chosen.items()]


def commands(study: Study, arm: Arm, seed: int) -> list[list[str]]:
    """The programs that make an arm: replacement paths where it replays them, the run, its scores."""
    here, run, judge = Path(sys.executable).parent, study.run(arm.name, seed), study.run(*arms.JUDGE)
    start = [str(here / "deepspeed"), "--num_gpus=1", f"--master_port={_free_port()}"]
    # The recipe alone would begin with its auxiliary model's weights; what an arm says comes later and counts. Adam's
    # epsilon is that of the first rows.
    chosen = ["--initial_weights=", "--optimizer.epsilon=1e-6", *settings(study, arm, seed)]
    made = []
    if arm.objective == "replay":
        own = ("--replacements=", "--objective=")
        same = [each for each in chosen if not each.startswith(own)]
        paths = [f"--auxiliary={study.masked_lm(arm.auxiliary) / 'export'}", f"--output={study.run('paths', seed)}"]
        made.append([*start, "launchers/precompute_replacements.py", "--t_max=2", *paths, *same])
    tracked = [f"--run.blimp={study.blimp}"] if study.blimp and arm.objective != "mlm" else []
    launch = [*start, "launchers/pretrain.py", f"--deepspeed={study.deepspeed}", f"--output={run}"]
    made.append([*launch, *chosen, *tracked])
    pairs = [f"--blimp={study.blimp}", f"--pairs={study.scale.blimp_pairs}"] if arm.group != "auxiliary" else []
    sampled = [f"--auxiliary={judge / 'export'}"] if arm.objective != "mlm" else []
    if study.judges_twice(arm):
        sampled.append(f"--second={study.run(*arms.SECOND_JUDGE) / 'export'}")
    made.append([sys.executable, "-m", "benchmarks.judge", str(run), *sampled, *pairs])
    if study.fine_tunes(arm):
        tuned = [f"--model={run / 'export'}", f"--tasks={','.join(GLUE_TASKS)}", f"--data={study.glue}"]
        more = ["--seeds=1", f"--output={run / 'glue'}", f"--max_train_rows={GLUE_ROWS}"]
        made.append([sys.executable, "launchers/finetune.py", *tuned, *more])
    return made


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def perform(study: Study, arm: Arm, seed: int, cores: Sequence[int], lock: IO[str]) -> Row:
    """Run an arm to its end and give its row. Raises RuntimeError naming the log when a program fails."""
    run = study.run(arm.name, seed)
    log, was_there = run.with_name(run.name + ".log"), (run / "summary.json").exists()
    for command in commands(study, arm, seed):
        if command[1] == "-m" and _scored(study, arm, run):
            continue
        pinned = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
        with log.open("a") as out:
            # The lock goes along: while a run outlives a study that was killed, no other can begin.
            done = subprocess.run(
                pinned, cwd=rows.ROOT, stdout=out, stderr=subprocess.STDOUT, check=False, pass_fds=[lock.fileno()]
            )
        if done.returncode:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
            if lines and _DIVERGED in lines[-1]:
                return diverged(study, arm, seed, lines[-1])
            raise RuntimeError(f"{arm.name}, seed {seed}: {lines[-1] if lines else 'failed'} (see {log})")
        if (run / "summary.json").exists() and not (run / _TRAINED).exists():
            origin = _known_origin(study, arm, seed) if was_there else _origin()
            partial = run / (_TRAINED + ".part")
            partial.write_text(json.dumps(origin))
            partial.replace(run / _TRAINED)
    return row(study, arm, seed)


def _known_origin(study: Study, arm: Arm, seed: int) -> Row:
    """The origin of a run that an earlier study trained: its row's, unknown where it has none."""
    asked, now = _identity(study, arm, seed), _origin()
    found = rows.read(study.rows) if study.rows.exists() else []
    same = [row for row in found if all(row.get(name) == value for name, value in asked.items())]
    return {name: same[-1].get(name) for name in now} if same else dict.fromkeys(now, "unknown")


def _origin() -> Row:
    """Of a run that is trained now: the code, the machine, and in what gradients are summed over tokens; rows without
    word of that are of code that summed those of norms and tables in the run's dtype (exact_sums.py)."""
    return {**rows.provenance("quality"), "token_sums": "float32"}


def _scored(study: Study, arm: Arm, run: Path) -> bool:
    """Whether the run has the scores of all judges that there are."""
    path = run / "scores.json"
    return path.exists() and (not study.judges_twice(arm) or "second" in json.loads(path.read_text()))


def _identity(study: Study, arm: Arm, seed: int) -> Row:
    """What tells a row from others."""
    named = {"arm": arm.name, "group": arm.group, "objective": arm.objective, "seed": seed, "scale": study.scale_name}
    return {"kind": "quality", **named, "recipe": " ".join(settings(study, arm, seed))}


def diverged(study: Study, arm: Arm, seed: int, message: str) -> Row:
    """The row of an arm whose numbers went wrong."""
    origin = {"formula": FORMULA, "n": 1, **rows.provenance("quality")}
    return {**_identity(study, arm, seed), "diverged": message.removeprefix("error: ").partition(":")[0], **origin}


def row(study: Study, arm: Arm, seed: int) -> Row:
    """The row of an arm whose run and scores are done."""
    run = study.run(arm.name, seed)
    summary, scores = (json.loads((run / name).read_text()) for name in ("summary.json", "scores.json"))
    judged, found, second = scores["judged"], scores["blimp"] or {}, scores.get("second") or {}
    flops, auxiliary_flops = summary["flops_per_token"] * summary["tokens"], _auxiliary_flops(study, arm, seed)
    own = {"judge_auc": "roc_auc", "judge_loss": "loss", "floor": "floor", "judge_accuracy": "accuracy"}
    return {
        **_identity(study, arm, seed),
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


def outstanding(study: Study, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[tuple[Arm, int]]:
    """Arms and seeds without a row, or with one that lacks what is asked for, in their order.

    Masked LMs come first again where others need them and their runs are no longer here.
    """
    found = rows.read(study.rows) if study.rows.exists() else []
    have = {(row["arm"], row["seed"], row["recipe"]): row for row in rows.select(found, "quality")}
    todo: list[tuple[Arm, int]] = []
    for arm, seed in arms.plan(only, seeds):
        row = have.get((arm.name, seed, " ".join(settings(study, arm, seed))))
        if row is None or ("diverged" not in row and _lacks(study, arm, seed, row)):
            todo.append((arm, seed))
    needed = {name for arm, _ in todo for name in requirements(arm)} - {(arm.name, seed) for arm, seed in todo}
    absent = [(name, seed) for name, seed in sorted(needed) if not _ended(study, name, seed)]
    return [(arms.ARMS[name], seed) for name, seed in absent] + todo


def _lacks(study: Study, arm: Arm, seed: int, row: Row) -> bool:
    """Whether the row of an arm is without what is asked for: fine-tuning, or the second judge if the run is here."""
    unheard = row.get("second_judge_auc") is None and (study.run(arm.name, seed) / "export").exists()
    return (study.fine_tunes(arm) and row.get("glue") is None) or (study.judges_twice(arm) and unheard)


def requirements(arm: Arm) -> list[tuple[str, int]]:
    """The masked LMs, each a name and a seed, that the arm is judged and made with."""
    needed = [arms.JUDGE] if arm.objective != "mlm" else []
    return needed + [(name, arms.AUXILIARY_SEED) for name in sorted(arms.masked_lms(arm))]


def ready(study: Study, arm: Arm) -> bool:
    """Whether what the arm is made and judged with has ended."""
    return all(_ended(study, name, seed) for name, seed in requirements(arm))


def _ended(study: Study, name: str, seed: int) -> bool:
    return (study.run(name, seed) / "summary.json").exists()


def conduct(study: Study, only: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Run what is outstanding, `jobs` arms at a time. Raises RuntimeError when one fails or a study is at work here."""
    study.folder.mkdir(parents=True, exist_ok=True)
    (study.folder / study.scale_name).mkdir(exist_ok=True)
    if restored := masked_lms.restore(study.scale_name, Path(study.corpus), study.folder / study.scale_name):
        print(f"taken from {masked_lms.KEPT}: {', '.join(restored)}", flush=True)
    queue, started, ended = outstanding(study, only, seeds), time.monotonic(), 0.0
    cores = sorted(os.sched_getaffinity(0))
    free = [cores[start::jobs] or cores for start in range(jobs)]
    running: dict[Future[Row], tuple[Arm, int, list[int]]] = {}
    with _locked(study.folder) as lock, ThreadPoolExecutor(jobs) as pool:
        while queue or running:
            while free and (chosen := next((each for each in queue if ready(study, each[0])), None)):
                queue.remove(chosen)
                mine = free.pop()
                running[pool.submit(perform, study, *chosen, mine, lock)] = (*chosen, mine)
                print(f"{chosen[0].name}, seed {chosen[1]}: started", flush=True)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                arm, seed, mine = running.pop(future)
                free.append(mine)
                rows.keep(study.rows, [future.result()])
                ended += arm.share
                left = sum(each.share for each, _ in queue) + sum(each.share for each, *_ in running.values())
                hours = (time.monotonic() - started) / ended * left / 3600
                print(f"{arm.name}, seed {seed}: done; {len(queue)} to begin, about {hours:.1f} h left", flush=True)


def _locked(folder: Path) -> IO[str]:
    """A file that is locked while this study, or a run that it started, is at work."""
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise RuntimeError(
            f"a study, or a run that a killed one left behind, is at work in {folder}: wait for it, or end it"
        ) from error
    return lock


def listing(study: Study) -> list[str]:
    """Every arm and seed with its length and whether it has a row."""
    todo = {(arm.name, seed) for arm, seed in outstanding(study)}
    return [
        f"{'to do' if (arm.name, seed) in todo else 'done':6} {arm.name:24} seed {seed:<4} {arm.group:10} "
        f"{arm.share * arm.rows * study.scale.tokens / 1e6:7.2f} million tokens"
        for arm, seed in arms.plan()
    ]


def parse(arguments: Sequence[str]) -> Any:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corpus", default="data/study", help="folder that prepare_corpus.py made (default: %(default)s)"
    )
    parser.add_argument(
        "--blimp", default="data/blimp", help="folder of BLiMP's files; empty for none (default: %(default)s)"
    )
    parser.add_argument(
        "--glue",
        default="",
        help="folder of GLUE's official files, to fine-tune the main arms on (default: none of it)",
    )
    parser.add_argument(
        "--scale", default="4x128", choices=arms.SCALES, help="size of models and runs (default: %(default)s)"
    )
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="ARM", help="these arms and what they need (default: all)"
    )
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=[], metavar="SEED", help="these seeds of the arms (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="arms to run beside each other (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/study"), help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--rows",
        type=Path,
        default=Path("benchmarks/results/quality.jsonl"),
        help="rows to add to (default: %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="show the arms and stop")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the study; returns the exit status."""
    given = parse(arguments)
    study = Study(given.scale, given.corpus, given.blimp, given.output, given.rows, given.glue)
    try:
        if given.list:
            print("\n".join(listing(study)))
            return 0
        if not Path(given.corpus).exists():
            raise ValueError(f"--corpus {given.corpus!r} is not there; make it with launchers/prepare_corpus.py")
        conduct(study, given.only, given.seeds, given.jobs)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
