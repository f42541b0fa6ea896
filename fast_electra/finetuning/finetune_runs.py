"""Several tasks and seeds one after another: what is done is not done again, and results.json tells all so far."""

from pathlib import Path
from typing import Any

from fast_electra.evaluation import scores
from fast_electra.files import json_file
from fast_electra.finetuning import task_head, tasks
from fast_electra.finetuning.finetune import Job, Settings, differences, progress_bar
from fast_electra.runs import failure, run_state
from fast_electra.runs.run_folder import write_json


def finetune_all(
    model: str, wanted: str, num_seeds: int, data: str, output: str, settings: Settings | None = None
) -> dict[str, Any]:
    """Fine-tune `model` on the tasks of `wanted` ("all", or names between commas) with seeds 1 to `num_seeds` each.

    Returns what results.json in `output` holds: for each task, those of earlier starts included, the median, range and
    all seeds of each measure; of the tasks wanted now, seeds above `num_seeds` are left out. "all" leaves out tasks of
    which the folder `data` has nothing, says so first, and names them under `without_data`.

    Raises ValueError for input that cannot be used, or when another process works in `output`.
    """
    if num_seeds < 1:
        raise ValueError(f"seeds = {num_seeds}: give a number of at least 1")
    names = tasks.names(wanted)
    missing = [] if data == tasks.HUB else [name for name in names if not tasks.has_data(name, data)]
    if missing and (wanted != "all" or missing == names):
        raise ValueError(
            f"data = {data!r} has nothing of {', '.join(missing)}: give the folder that holds the official files (a "
            "folder a task, SQuAD's beside them or in squad/), leave these tasks out, or pass --data hub"
        )
    if missing:  # before hours of the others
        print(f"data = {data!r} has nothing of {', '.join(missing)}: left out", flush=True)  # noqa: T201
    present = [name for name in names if name not in missing]
    config = task_head.load_config(model)
    ours = task_head.fingerprints(model, config, task_head.load_tokenizer(model, config))
    earlier = _earlier(Path(output), ours)
    Path(output).mkdir(parents=True, exist_ok=True)
    run_state.take(output)
    with failure.noted(output, failure.FINETUNING):
        runs = earlier | {
            name: {seed: run for seed, run in earlier.get(name, {}).items() if seed <= num_seeds} for name in present
        }
        for name in present[1:]:  # what is wrong with a later task is told before hours of the earlier ones
            Job(model, name, data, settings or Settings())
        bar = progress_bar("all runs", len(present) * num_seeds, "run")
        for name in present:
            job = Job(model, name, data, settings or Settings())
            for seed in range(1, num_seeds + 1):
                runs[name][seed] = job.run(seed, output, f"{name} seed {seed} of {num_seeds}")
                found = {key: [by_seed[each] for each in sorted(by_seed)] for key, by_seed in runs.items() if by_seed}
                results = _results(model, ours["weights"], found, missing)
                write_json(Path(output) / "results.json", results)
                bar.update()
        bar.close()
    run_state.end(output, run_state.FINISHED)
    return results


def _earlier(output: Path, ours: dict[str, str]) -> dict[str, dict[int, dict[str, Any]]]:
    """The runs that earlier starts left in `output`, by task and seed.

    Raises ValueError where they are of another model than `ours` tells.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in tasks.NAMES:
        for place in sorted((output / name).glob("seed-*.json")):
            run = json_file.read(place, "Remove it, and the same command runs this seed again")
            if differing := differences(run.get("identity", {}), ours):
                raise ValueError(
                    f"{str(place)!r} is a result of another model ({'; '.join(differing)}): name a new folder with "
                    "--output"
                )
            found.setdefault(name, {})[int(run["seed"])] = run
    return found


def _results(model: str, weights: str, runs: dict[str, list[dict[str, Any]]], missing: list[str]) -> dict[str, Any]:
    found = {name: scores.over_seeds(one) for name, one in runs.items()}
    averaged = [one for name, one in runs.items() if name in scores.AVERAGED]
    alike = len({run["identity"]["settings"]["max_train_rows"] for one in averaged for run in one}) == 1
    environments = [run.get("environment") for one in runs.values() for run in one]
    return {
        "model": model,
        "weights": weights,
        "glue_average": scores.glue_average(found) if alike else None,
        "tasks": found,
        "settings": {name: one[0]["identity"]["settings"] for name, one in runs.items()},
        "seconds": {
            name: sum(run["seconds_training"] + run["seconds_evaluating"] for run in one) for name, one in runs.items()
        },
        "without_data": missing,
        "environments": [each for at, each in enumerate(environments) if each not in environments[:at]],
    }
