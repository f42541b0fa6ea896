"""Fine-tune an encoder on one task with one seed: the field's recipe on transformers' Trainer.

The recipe is ELECTRA's (Clark et al., ICLR 2020, appendix; values as in google-research/electra
configure_finetuning.py): Adam .9/.999 with eps 1e-6, weight decay .01, gradients clipped at 1, batches of 32, linear
warm-up over the first tenth and linear decay, layer-wise decay of the learning rate; 3 epochs, 10 for RTE and STS-B, 2
for SQuAD; rows of up to 128 tokens, 512 for SQuAD; rates by width: 3e-4 below 512, 1e-4 below 1024, 5e-5 from there on,
with a layer decay of .8, .8 and .9. A model whose tokenizer says that it was trained on shorter rows gets those. Left
out: ELECTRA trains on both orders of MRPC's and STS-B's pairs and has a larger question-answering head. Other than
there: the rate falls from its peak at the end of the warm-up (there as if it had fallen from the first update on: a
tenth lower throughout), windows of a long SQuAD paragraph overlap by 128 tokens (there they begin 128 apart), and
3e-4 is the paper's for its small model (the code: 1e-4). Dropout is the model's own unless set.

Rows are padded to the longest of their batch, and batches are drawn from rows of like length.
"""

import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import DataCollatorWithPadding, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from fast_electra.evaluation import scores
from fast_electra.files import json_file
from fast_electra.finetuning import layer_decay, task_head, tasks
from fast_electra.kernels import precision
from fast_electra.methods.divergence import DivergedError
from fast_electra.runs.run_folder import environment, flatten, write_json
from fast_electra.settings.require import require

_MANY_EPOCHS = ("RTE", "STS-B")
_LEAST_SQUAD_ROW = 16
_LOOKED_AT = 50  # steps from one look at the weights to the next


def _chosen(default: Any, meaning: str, unset: str = "") -> Any:
    """A setting, what `--help` says of it, and what it is where it is None."""
    return field(default=default, metadata={"meaning": meaning, "unset": unset})


@dataclass(frozen=True)
class Settings:
    """What may be chosen; None is the recipe's value for the task and the model's width."""

    epochs: float | None = _chosen(None, "passes over the training rows", "3, for RTE and STS-B 10, for SQuAD 2")
    learning_rate: float | None = _chosen(
        None, "the head's, at its peak", "3e-4, from a width of 512 on 1e-4, of 1024 5e-5"
    )
    layer_decay: float | None = _chosen(
        None,
        "factor from a layer's rate to the one's below; 1 is no decay",
        "0.8, from a width of 1024 on 0.9",
    )
    batch_rows: int = _chosen(32, "rows of an update")
    max_length: int | None = _chosen(
        None, "tokens a row", "128, for SQuAD 512, or what the model was trained on if that is less"
    )
    warmup_ratio: float = _chosen(0.1, "share of the updates in which the rate rises")
    weight_decay: float = _chosen(0.01, "AdamW's")
    dropout: float | None = _chosen(None, "every rate of dropout", "the model's own")
    max_train_rows: int | None = _chosen(None, "train on a fixed random choice of so many rows", "all")
    bf16: bool | None = _chosen(None, "compute in bfloat16", "where the hardware multiplies it")

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "max_train_rows", "batch_rows"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "give a number above 0")
        require(
            self.max_length is None or self.max_length >= 8, "max_length", self.max_length, "give at least 8 tokens"
        )
        for name in ("layer_decay", "warmup_ratio", "weight_decay", "dropout"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, name, value, "give a number from 0 to 1")
        require(self.layer_decay != 0, "layer_decay", self.layer_decay, "give a number above 0; 1 is no decay")
        require(self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio, "give a share of the updates below 1")

    def resolved(self, task: str, hidden_size: int, max_length: int) -> "Settings":
        """The settings with every None of the recipe filled in."""
        epochs = 2.0 if task in tasks.squad.TASKS else 10.0 if task in _MANY_EPOCHS else 3.0
        rate = 3e-4 if hidden_size < 512 else 1e-4 if hidden_size < 1024 else 5e-5
        return replace(
            self,
            epochs=self.epochs or epochs,
            learning_rate=self.learning_rate or rate,
            layer_decay=self.layer_decay or (0.8 if hidden_size < 1024 else 0.9),
            max_length=max_length,
            bf16=_computes_bf16() if self.bf16 is None else self.bf16,
        )


def finetune(
    model: str, task: str, seed: int, data: str, output: str | None = None, settings: Settings | None = None
) -> dict[str, Any]:
    """Fine-tune the encoder `model` (an exported folder or a name on the hub) on one task with one seed.

    `data` is a folder of official files, or "hub". Returns `score`, `metrics` (0 to 100) and what they were reached
    with; see `Job.run` for `output`. Raises ValueError for input that cannot be used, naming it and the way out.
    """
    return Job(model, task, data, settings or Settings()).run(seed, output)


class Job:
    """One task for one model: what its seeds share. Raises ValueError like `finetune`."""

    def __init__(self, model: str, task: str, data: str, settings: Settings) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("WORLD_SIZE is above 1: fine-tuning runs as one process; start it with plain python")
        (task,) = tasks.names(task)
        config = task_head.load_config(model)
        usual = 512 if task in tasks.squad.TASKS else 128
        task_head.require_class(model, config, answers=task in tasks.squad.TASKS)
        self.tokenizer = task_head.load_tokenizer(model, config)
        length = task_head.longest_row(model, config, settings.max_length, usual, self.tokenizer.model_max_length)
        short = task in tasks.squad.TASKS and length < _LEAST_SQUAD_ROW
        require(not short, "max_length", length, f"{task} needs room for question and text; give {_LEAST_SQUAD_ROW}")
        if task in tasks.squad.TASKS and self.tokenizer("a", "b")["input_ids"][0] != self.tokenizer.cls_token_id:
            raise ValueError(f"model = {model!r}: its rows do not begin with [CLS], by which {task} says 'no answer'")
        self.model, self.name = model, task
        self.padding = task_head.padding(config, length)
        self.settings = settings.resolved(task, int(config.hidden_size), length)
        self.task = tasks.read(task, data, self.tokenizer, length)
        self.identity = {
            "task": task,
            **task_head.fingerprints(model, config, self.tokenizer),
            "data": self.task.fingerprint,
            "settings": asdict(self.settings),
        }

    def run(self, seed: int, output: str | None = None, title: str | None = None) -> dict[str, Any]:
        """Train and measure with one seed; `title` heads the progress bars.

        With an `output` folder the result is written to TASK/seed-N.json there, whole or not at all, and test
        predictions to predictions/seed-N/. A result that is there already is returned as it is. Raises ValueError if
        it is of another model, other data or settings, DivergedError if training diverges.
        """
        place = Path(output) / self.name / f"seed-{seed}.json" if output is not None else None
        if place is not None and place.exists():
            done = json_file.read(place, "Remove it, and the same command runs this seed again")
            self._refuse_other(done.get("identity", {}), place)
            return done
        title = title or f"{self.name} seed {seed}"
        assert self.settings.max_length is not None
        model = task_head.load(self.model, self.task.num_labels, self.settings.max_length, seed, self.settings.dropout)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = self._trainer(model, seed, scratch, title)
            started = time.perf_counter()
            trained = trainer.train()
            seconds = time.perf_counter() - started
        # The samplers group by length whatever is predicted too, and its outputs would come in their order.
        trainer.args.train_sampling_strategy = "sequential"
        started = time.perf_counter()
        folder = Path(output) / "predictions" / f"seed-{seed}" if output is not None else None
        metrics = self.task.evaluate(lambda rows, what: _predict(trainer, rows, f"{title} {what}"), folder)
        result = {
            "task": self.name,
            "seed": seed,
            "score": scores.score(self.name, metrics),
            "metrics": metrics,
            "train_loss": trained.training_loss,
            "steps": trained.global_step,
            "train_rows": len(self._train_rows()),
            "dropped_examples": self.task.dropped,
            "seconds_training": seconds,
            "seconds_evaluating": time.perf_counter() - started,
            "model": self.model,
            "identity": self.identity,
            "environment": environment(),
        }
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, json_file.sealed(result))
        return result

    def _refuse_other(self, before: dict[str, Any], place: Path) -> None:
        if differing := differences(before, self.identity):
            raise ValueError(
                f"{str(place)!r} is a result of other inputs; name a new folder with --output, or start with the same:"
                "\n  " + "\n  ".join(differing)
            )

    def _trainer(self, model: PreTrainedModel, seed: int, scratch: str, title: str) -> Trainer:
        chosen = self.settings
        assert chosen.learning_rate is not None and chosen.layer_decay is not None and chosen.epochs is not None
        groups = layer_decay.parameter_groups(model, chosen.learning_rate, chosen.layer_decay, chosen.weight_decay)
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=chosen.batch_rows,
            per_device_eval_batch_size=min(64, 2 * chosen.batch_rows),
            num_train_epochs=chosen.epochs,
            learning_rate=chosen.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=chosen.warmup_ratio,
            max_grad_norm=1.0,
            bf16=bool(chosen.bf16),
            use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="group_by_length",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        if arguments.n_gpu > 1:  # it would spread one run over all that it sees, and results with it
            arguments._n_gpu = 1
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=self._train_rows(),  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=self.padding),
            processing_class=self.tokenizer,
            callbacks=[Bar(title), Sound(title)],
            optimizer_cls_and_kwargs=(
                torch.optim.AdamW,
                {"params": groups, "lr": chosen.learning_rate, "betas": (0.9, 0.999), "eps": 1e-6},
            ),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _train_rows(self) -> list[dict[str, Any]]:
        rows, most = self.task.train_rows, self.settings.max_train_rows
        if most is None or most >= len(rows):
            return rows
        return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))[:most]]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of an identity `now` an earlier result's does not equal; older ones do not tell model and tokenizer."""
    there = flatten(before)
    unknown = {"model", "tokenizer"} - there.keys()
    return [
        f"{key}: {there.get(key)!r} there, {value!r} now"
        for key, value in flatten(now).items()
        if there.get(key) != value and key not in unknown
    ]


class Bar(TrainerCallback):
    """A progress bar with the time left, for training."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self.bar = progress_bar(self.title, state.max_steps, "step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on by an update."""
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.close()


class Sound(TrainerCallback):
    """Ends a training that has diverged: clipped by a norm that is no number, all weights become none with one."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the smallest weight. Raises DivergedError."""
        if state.global_step % _LOOKED_AT:
            return
        if not min(kwargs["model"].parameters(), key=torch.numel).isfinite().all():
            raise _diverged(f"{self.title}, step {state.global_step} of {state.max_steps}: weights", args)


def _diverged(what: str, args: Any) -> DivergedError:
    return DivergedError(
        f"{what} of the model are no numbers, so training diverged at learning_rate = {args.learning_rate:g}; give a "
        "lower one"
    )


def progress_bar(title: str, total: int, unit: str) -> tqdm:
    """A bar that does not flood a log file."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=title, unit=unit, leave=False, dynamic_ncols=True, mininterval=interval)


def _predict(trainer: Trainer, rows: list[dict[str, Any]], title: str) -> Any:
    """The model's outputs for the rows, in their order; rows of like length go together."""
    order = np.argsort([len(row["input_ids"]) for row in rows], kind="stable")
    outputs = trainer.predict([rows[index] for index in order]).predictions  # type: ignore[arg-type]
    if not all(np.isfinite(part).all() for part in (outputs if isinstance(outputs, tuple) else (outputs,))):
        raise _diverged(f"{title}: some outputs", trainer.args)
    back = np.argsort(order)
    return tuple(part[back] for part in outputs) if isinstance(outputs, tuple) else outputs[back]


def _computes_bf16() -> bool:
    return precision.dtype("auto", on_cpu=not torch.cuda.is_available()) == torch.bfloat16
