"""The last page of a run: what was learned, at what speed, and how to load it, for a person to read."""

import math
from typing import Any


def describe(summary: dict[str, Any]) -> str:
    """The summary of a finished run (run folder's summary.json) as text."""
    learned = _masked_lm(summary) if summary["objective"] == "mlm" else _discriminator(summary)
    state = "was already done; nothing was run" if summary.get("already_done") else "is done"
    lines = [
        f"{summary['recipe']} ({summary['objective']}) {state}",
        *learned,
        *_begun(summary),
        f"  trained      {summary['steps']:,} steps, {summary['tokens']:,} tokens, {summary['weights']:,} weights, "
        f"{summary['seconds']:.0f} s on {summary['num_processes']} process(es)",
        f"  speed        {summary['tokens_per_second']:,.0f} tokens/s, MFU {_figure(summary['mfu'], '.1%')} of the "
        f"{summary['measured_peak_tflops']:.2f} TFLOP/s that a {summary['dtype']} matrix product reached in this run",
        *_startup(summary),
        *_separated(summary),
        f"  peak memory  {summary['peak_memory_gib']:.2f} GiB",
        f"  model        {summary['export']} (logits within {summary['export_logit_difference']:.1e} of the engine's)",
        "",
        f"    from transformers import AutoTokenizer, {summary['model_class']}",
        f'    tokenizer = AutoTokenizer.from_pretrained("{summary["export"]}")',
        f'    model = {summary["model_class"]}.from_pretrained("{summary["export"]}")',
        *_use(summary),
    ]
    return "\n" + "\n".join(lines) + "\n"


def _figure(value: float | None, form: str) -> str:
    """A figure that a run may not have: JSON holds null where it was no number."""
    return "not counted" if value is None or math.isnan(value) else format(value, form)


def begun(summary: dict[str, Any]) -> str:
    """What a run began with, from its summary or its facts; "" where it was told to begin anew."""
    if "initial_misfit" in summary:
        return f"new weights, not the auxiliary model's: {summary['initial_misfit']}"
    if "initial_from" not in summary:
        return ""
    words = f"the embeddings and {summary['initial_layers']} layers of {summary['initial_from']}"
    if "initial_lm_head" in summary:
        new = summary["initial_lm_head"]  # why it is
        words += f"; the LM head is new ({new})" if new else ", with its LM head"
    if "initial_generator_layers" in summary:
        words += f"; its generator with {summary['initial_generator_layers']} layers and the LM head of it"
    return words


def _begun(summary: dict[str, Any]) -> list[str]:
    words = begun(summary)
    return [f"  begun with   {words}"] if words else []


def _startup(summary: dict[str, Any]) -> list[str]:
    seconds = summary.get("startup_seconds")
    return [] if seconds is None else [f"  start-up     {seconds:.1f} s to the end of the first step"]


def stopped(result: dict[str, Any]) -> str:
    """What to say of a start that ended before its run."""
    where = f"at step {result['stopped_at_step']:,}" if "stopped_at_step" in result else "before it trained"
    if result["preempted"]:
        return f"\n{result['output']} stopped {where}; the same command goes on from there\n"
    return f"\n{result['output']} stopped {where}, as run.stop_at_step asked; raise it or leave it out to go on\n"


def _discriminator(summary: dict[str, Any]) -> list[str]:
    drawn = "held-out rows, T = 1" if summary.keys() & {"auxiliary", "generator", "replacements"} else "held-out rows"
    lines = [
        f"  learned      loss {summary['loss']:.4f} against {summary['floor']:.4f} of the majority-class floor; "
        f"ROC-AUC {_figure(summary['roc_auc'], '.3f')} ({drawn})"
    ]
    if "auxiliary" in summary:
        lines.append(
            f"  auxiliary    {summary['auxiliary']}: predicts {summary['auxiliary_top1']:.1%} of masked tokens "
            f"(the most frequent token: {summary['most_frequent_share']:.1%}), {summary['auxiliary_engine']} engine"
        )
    if "replacements" in summary:
        low, high = summary["replacement_temperatures"]
        lines.append(
            f"  replayed     {summary['replacements']}: {summary['replacement_draws']} draws a row, T from {low:g} to "
            f"{high:g}; no auxiliary model was loaded"
        )
    if "temperature_start" in summary:
        start, end = summary["temperature_start"], summary["temperature_end"]
        lines.append(f"  temperature  {start:.3f} at the start, {end:.3f} at the end")
    if "generator" in summary:
        lines.append(
            f"  generator    {summary['generator']}: loss {summary['generator_loss']:.3f}, predicts "
            f"{summary['generator_accuracy']:.1%} of masked tokens; give it to --auxiliary of another run"
        )
    return lines


def _separated(summary: dict[str, Any]) -> list[str]:
    """What keeping documents apart would save, and whether the kernel saved it."""
    if "separated_attention_share" not in summary:
        return []
    skipped = "left out by FlexAttention, and not counted in MFU"
    done = skipped if summary["separation_skips"] else "computed all the same under a block mask, and counted in MFU"
    return [
        f"  documents    kept apart: {summary['separated_attention_share']:.1%} of attention's products lie within "
        f"documents, {summary['separated_flops_share']:.1%} of all FLOPs; the rest is {done}"
    ]


def _masked_lm(summary: dict[str, Any]) -> list[str]:
    learned = (
        f"  learned      loss {summary['loss']:.3f}, {summary['accuracy']:.1%} of held-out masked tokens predicted"
    )
    if "gate_accuracy" not in summary:  # of an earlier version
        return [learned]
    lines = [f"{learned} (the most frequent token: {summary['most_frequent_share']:.1%})"]
    if summary["accuracy"] <= summary["gate_accuracy"]:
        lines.append("  beware       too little for an auxiliary model, which the gate would refuse: train it longer")
    return lines


def _use(summary: dict[str, Any]) -> list[str]:
    """What to ask the exported model."""
    if summary["objective"] == "mlm":
        return []
    return ['    model(**tokenizer("a text", return_tensors="pt")).logits.sigmoid()  # of each token: P(replaced)']
