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
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.study import arms, masked_lms
from benchmarks.study.arm_rows import diverged, note_origin, row, scored
from benchmarks.study.arm_runs import Study, commands, ready, requirements, settings
from benchmarks.study.arms import Arm

_DIVERGED = "the numbers have gone wrong"


def perform(study: Study, arm: Arm, seed: int, cores: Sequence[int], lock: IO[str]) -> Row:
    """Run an arm to its end and give its row. Raises RuntimeError naming the log when a program fails."""
    run = study.run(arm.name, seed)
    log, was_there = run.with_name(run.name + ".log"), study.ended(arm.name, seed)
    for command in commands(study, arm, seed):
        if command[1] == "-m" and scored(study, arm, run):
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
        if study.ended(arm.name, seed):
            note_origin(study, arm, seed, was_there)
    return row(study, arm, seed)


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
    absent = [(name, seed) for name, seed in sorted(needed) if not study.ended(name, seed)]
    return [(arms.ARMS[name], seed) for name, seed in absent] + todo


def _lacks(study: Study, arm: Arm, seed: int, row: Row) -> bool:
    """Whether the row of an arm is without what is asked for: fine-tuning, or the second judge if the run is here."""
    unheard = row.get("second_judge_auc") is None and (study.run(arm.name, seed) / "export").exists()
    return (study.fine_tunes(arm) and row.get("glue") is None) or (study.judges_twice(arm) and unheard)


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
