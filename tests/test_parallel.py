"""The edge: what a process holds under ZeRO-3, and what training leaves alone."""

import re
import resource
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import deepspeed
import pytest
import torch
from conftest import ROOT, clean_environment
from transformers import AutoModelForMaskedLM

from fast_electra.batching.batches import Batches
from fast_electra.corpora.corpus import Corpus
from fast_electra.engine import buffers, deepspeed_config, heap, optim, parallel, sharded_weights, torchs_linear
from fast_electra.methods.objectives import Frozen
from fast_electra.models import discriminator
from fast_electra.models.auxiliary import Auxiliary, MaskedLM, build_masked_lm
from fast_electra.models.encoder import transformers_config
from fast_electra.settings import recipes
from fast_electra.settings.config import ENCODER_TYPES, DataConfig, EncoderConfig, TemperatureConfig

SHARE = """
import resource
import sys
from types import SimpleNamespace

import torch
from deepspeed.utils import groups
from fast_electra.runs import command_line
from fast_electra.engine import deepspeed_config, parallel, sharded_weights
from fast_electra.models import discriminator
from fast_electra.models.encoder import transformers_config
from fast_electra.engine.stop_vote import StopVote

class Words:
    pad_token_id, cls_token_id, sep_token_id = 0, 2, 3
    def __len__(self):
        return 4096

def tell(name, *values):  # in one write: each piece that `print` takes is a write of its own under `python -u`
    sys.stdout.write(" ".join(map(str, (name, *values))) + "\\n")

torch.use_deterministic_algorithms(True)  # also fills new memory with NaN
config, _ = command_line.parse(["--deepspeed", "none", "--run.dtype=bfloat16"], "")
parallel.start(7.0)
used = torch.distributed.group.WORLD, groups._get_data_parallel_group(), StopVote(7.0)._group
tell("open files:", resource.getrlimit(resource.RLIMIT_NOFILE))
vote = StopVote()
vote._every = 3
tell("asked:", [vote.ask(parallel.rank() == 1) for _ in range(7)], vote.close())
tell("patience:", {str(each._get_backend(torch.device("cpu")).options._timeout) for each in used})
settings = deepspeed_config.fill({"zero_optimization": {"stage": 3}}, config, 2, True)
with parallel.building(settings):
    model = discriminator.build(transformers_config(config.encoder, Words()), "eager", torch.bfloat16)
share = sharded_weights.local_weight_elements(model) / sharded_weights.num_weights(model)
tell(f"rank {parallel.rank()} holds {share:.3f}")
engine, padded = SimpleNamespace(module=model), [p.ds_tensor for p in model.parameters() if p.ds_numel % 2]
assert not all(share.isfinite().all() for share in padded) or parallel.rank() == 0, "nothing to leave out"
tell("finite:", sharded_weights.weights_are_finite(engine))
if parallel.rank() == 1:
    next(model.parameters()).ds_tensor[-1] = torch.inf
tell("broken:", not sharded_weights.weights_are_finite(engine))
parallel.stop(0)
"""


def test_a_model_built_under_zero_3_is_never_whole_on_one_process_and_each_waits_as_long_as_it_was_told(tmp_path):
    (tmp_path / "share.py").write_text(SHARE)
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2", "--master_port=29871", "share.py"]
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    few = "ulimit -Sn 1000; exec " + shlex.join(command)
    done = subprocess.run(
        ["bash", "-c", few], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=True
    )
    shares = [float(share) for share in re.findall(r"holds (0\.\d{3})", done.stdout)]
    assert len(shares) == 2
    assert all(share < 0.55 for share in shares)
    assert done.stdout.count("finite: True") == 2, "the end of an odd weight's last share is nobody's"
    assert done.stdout.count("broken: True") == 2
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert done.stdout.count(f"open files: ({most}, {most})") == 2
    assert done.stdout.count(f"asked: {[False] * 5 + [True, False]} True") == 2, (
        "asked after 3 and 6, answered a vote later"
    )
    assert done.stdout.count("patience: {'0:07:00'}") == 2, "of every group, DeepSpeed's clone of the first included"


@pytest.fixture
def frozen_training(tiny_corpus):
    """An engine on a tiny discriminator and the frozen model it is fed by, in this process."""
    parallel.start()
    corpus, tiny = Corpus.open(tiny_corpus), recipes.get("demo")
    encoder = replace(tiny.encoder, num_layers=1, hidden_size=32, num_heads=2, intermediate_size=48)
    config = replace(tiny, encoder=encoder, run=replace(tiny.run, batch_rows=4, micro_batch_rows=4, dtype="bfloat16"))
    batches = Batches([(corpus, 1.0)], DataConfig(sequence_length=32, held_out_rows=4), seed=0)
    shape = transformers_config(encoder, corpus.tokenizer)
    model = AutoModelForMaskedLM.from_config(shape, dtype=torch.bfloat16)
    auxiliary = Auxiliary(parallel.inference_engine(MaskedLM(model), torch.bfloat16), corpus.tokenizer, seed=0)
    objective = Frozen(auxiliary, TemperatureConfig(), 0.15)
    settings = deepspeed_config.fill({"zero_optimization": {"stage": 3}}, config, 1, True)
    with parallel.building(settings):
        module = objective.module(shape, "eager", torch.bfloat16)
    engine = parallel.training_engine(module, optim.parameter_groups(module, 0.01), settings)
    yield engine, objective, model, batches
    engine.destroy()


def test_training_changes_the_discriminator_and_never_the_auxiliary_model(frozen_training):
    engine, objective, model, batches = frozen_training
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained = dict(sharded_weights.full_weights(engine, engine.module))
    for step in range(3):
        inputs = objective.inputs(batches.training(4 * step, 4), 0.5)
        loss, _ = engine(*inputs)
        engine.backward(loss)
        engine.step()
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert not any(model is module for module in engine.module.modules())
    changed = [not torch.equal(trained[name], now) for name, now in sharded_weights.full_weights(engine, engine.module)]
    assert all(changed)


def test_the_discriminator_sees_samples_and_never_a_mask(frozen_training):
    _, objective, _, batches = frozen_training
    batch = batches.training(0, 1000)
    input_ids, labels, _ = objective.inputs(batch, 0.0)
    assert not (input_ids == batches.corpora[0].tokenizer.mask_token_id).any()
    assert torch.equal(labels.bool(), input_ids != batch.input_ids)
    elsewhere = torch.ones_like(labels, dtype=torch.bool).scatter(1, batch.positions, False)
    assert not labels[elsewhere].any()
    assert 0 < labels.sum() < batch.positions.numel(), "some samples equal the original and count as original"


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", ENCODER_TYPES)
@pytest.mark.parametrize("build", [discriminator.build, build_masked_lm])
def test_new_weights_do_not_depend_on_the_zero_stage(build, model_type, tiny_tokenizer):
    parallel.start()
    encoder = EncoderConfig(
        model_type=model_type, num_layers=2, hidden_size=32, num_heads=2, intermediate_size=48, max_positions=64
    )
    config = replace(recipes.get("demo"), run=replace(recipes.get("demo").run, dtype="bfloat16"))
    found = []
    for stage in (1, 3):
        settings = deepspeed_config.fill({"zero_optimization": {"stage": stage}}, config, 1, True)
        torch.manual_seed(7)
        with parallel.building(settings):
            model = build(transformers_config(encoder, tiny_tokenizer), "eager", torch.bfloat16)
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            found.append({name: tensor.clone().cpu() for name, tensor in model.state_dict(keep_vars=True).items()})
        found[-1] |= {name: buffer.clone().cpu() for name, buffer in model.named_buffers()}
    whole, split = found
    assert whole.keys() == split.keys()
    assert [name for name in whole if whole[name].dtype != split[name].dtype] == []
    assert [name for name in whole if not torch.equal(whole[name], split[name])] == []


def test_a_frozen_model_answers_the_same_before_and_after_zero_3_was_used(tiny_tokenizer, monkeypatch):
    parallel.start()
    monkeypatch.setattr(torch.nn.functional, "linear", torchs_linear.LINEAR)  # other tests used ZeRO-3
    config = replace(recipes.get("demo"), run=replace(recipes.get("demo").run, dtype="bfloat16"))
    model = build_masked_lm(transformers_config(config.encoder, tiny_tokenizer), "eager", torch.bfloat16)
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    frozen = parallel.inference_engine(MaskedLM(model), torch.bfloat16)
    input_ids, positions = torch.arange(5, 69).view(4, 16), torch.arange(8).repeat(4, 1)
    before = frozen(input_ids, positions)
    with parallel.building(deepspeed_config.fill({"zero_optimization": {"stage": 3}}, config, 1, True)):
        discriminator.build(transformers_config(config.encoder, tiny_tokenizer), "eager", torch.bfloat16)
    assert torch.nn.functional.linear is not torchs_linear.LINEAR, "DeepSpeed replaced it"
    assert torch.equal(frozen(input_ids, positions), before)


@pytest.mark.parametrize("stage", [1, 3])
def test_rotary_frequencies_stay_in_float32(stage, tiny_corpus):
    parallel.start()
    config, tokenizer = recipes.get("demo"), Corpus.open(tiny_corpus).tokenizer
    config = replace(config, run=replace(config.run, dtype="bfloat16"))
    shape = transformers_config(config.encoder, tokenizer)
    settings = deepspeed_config.fill({"zero_optimization": {"stage": stage}}, config, 1, True)
    with parallel.building(settings):
        module = discriminator.build(shape, "eager", torch.bfloat16)
    engine = parallel.training_engine(module, optim.parameter_groups(module, 0.01), settings)
    frozen = parallel.inference_engine(MaskedLM(AutoModelForMaskedLM.from_config(shape)), torch.bfloat16)
    for each in (engine.module, frozen):
        frequencies = [buffer for name, buffer in each.named_buffers() if "inv_freq" in name]
        assert frequencies
        assert {buffer.dtype for buffer in frequencies} == {torch.float32}
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.bfloat16}
    engine.destroy()


def zero_1_engine(tokenizer):
    """On a tiny discriminator in bf16; an update takes four rows, one by one."""
    parallel.start()
    config = replace(recipes.get("demo"), run=replace(recipes.get("demo").run, dtype="bfloat16", batch_rows=4))
    config = replace(config, run=replace(config.run, micro_batch_rows=1))
    settings = deepspeed_config.fill({"zero_optimization": {"stage": 1}}, config, 1, True)
    shape = transformers_config(EncoderConfig("bert", 1, 32, 2, 48, max_positions=64), tokenizer)
    torch.manual_seed(0)
    module = discriminator.ReplacedTokenDetection(discriminator.build(shape, "eager", torch.bfloat16)).eval()
    return parallel.training_engine(module, optim.parameter_groups(module, 0.01), settings)


def sums_of_gradients(engine):
    """Of an update's four rows, as the optimizer is about to take them."""
    for row in torch.arange(5, 69).view(4, 1, 16):
        engine.backward(engine(row, row % 2)[0])
        if not engine.is_gradient_accumulation_boundary():
            engine.step()
    return torch.cat([each.flatten() for group in engine.optimizer.fp32_groups_gradients for each in group])


def test_sums_of_gradients_reach_the_optimizer_in_float32(tiny_tokenizer):
    """Reduced in bf16, as DeepSpeed would by itself, every one of them would be a number of bf16."""
    engine = zero_1_engine(tiny_tokenizer)
    engine.enable_backward_allreduce = True  # as where several processes train
    sums = sums_of_gradients(engine)
    assert sums.dtype == torch.float32
    given = sums[sums != 0]  # rows of the embeddings that no token asked for have none
    assert (given != given.bfloat16()).float().mean() > 0.5
    engine.destroy()


def test_training_on_a_cpu_keeps_the_memory_that_a_step_frees(tiny_tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(heap, "keep_freed", lambda: asked.append(True))
    zero_1_engine(tiny_tokenizer).destroy()
    assert asked == [True]


def test_one_process_takes_its_sums_as_they_are(tiny_tokenizer):
    """DeepSpeed would copy all of them out, reduce them with themselves and copy them back."""
    engine, found = zero_1_engine(tiny_tokenizer), []
    assert engine.enable_backward_allreduce is False
    engine.destroy()
    for reduces in (False, True):
        engine = zero_1_engine(tiny_tokenizer)
        engine.enable_backward_allreduce = reduces
        sums = sums_of_gradients(engine)
        engine.step()
        found.append((sums.clone(), [weight.detach().clone() for weight in engine.module.parameters()]))
        engine.destroy()
    (alone, weights), (reduced, others) = found
    assert torch.equal(alone, reduced)
    assert all(torch.equal(one, other) for one, other in zip(weights, others, strict=True))


class Ours(torch.nn.Module):
    """A module of ours around a stock model, as a joint run's."""

    def __init__(self):
        super().__init__()
        self.register_buffer("special_ids", torch.tensor([4, 1]), persistent=False)
        self.inner = torch.nn.ModuleDict({"rope": torch.nn.Module()})
        self.inner["rope"].register_buffer("frequencies", torch.ones(3))


def test_buffers_lie_where_a_process_computes_in_the_numbers_they_were_made_in():
    """DeepSpeed moves no model to a GPU that zero.Init has had a part in, and casts others whole."""
    module = Ours()
    with buffers.kept(module, torch.device("meta")):
        assert {buffer.device.type for buffer in module.buffers()} == {"meta"}
    module = Ours()
    with buffers.kept(module, torch.device("cpu")):
        module.bfloat16()
    assert module.inner["rope"].frequencies.dtype == torch.float32
    assert module.special_ids.dtype == torch.int64


def test_deepspeeds_accelerator_says_where_a_process_computes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert parallel.device() == torch.device("cpu"), "DS_ACCELERATOR=cpu"

    class Gpu:
        def device_name(self):
            return "cuda"

    monkeypatch.setattr(parallel, "get_accelerator", Gpu)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert parallel.device() == torch.device("cuda", 3)


LEAVE = """
import sys, time
from fast_electra.engine import parallel

parallel.start()
if parallel.rank() == 1:
    time.sleep(120)
parallel.stop(75, patience_seconds=2.0)
"""


def test_a_process_that_is_done_waits_a_bounded_time_for_one_that_does_not_come(tmp_path):
    (tmp_path / "leave.py").write_text(LEAVE)
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2", "--master_port=29877", "leave.py"]
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 75, done.stderr[-3000:]
