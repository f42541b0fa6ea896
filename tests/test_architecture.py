"""The package's shape: modules import only what lies upstream, and only the edge knows of processes."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "fast_electra"
_FLOW = """
    randomness random_reads precision operator_builds exact_sums gated_gelu_kernel gated_gelu compilation
    json_file require run_config config config_file recipes
    documentation tokenizer compression hub documents staging megatron_index manifest tokenization corpus_writer corpus
    masking separation batches blimp
    divergence temperature cpu_attention encoder statistic vocabulary_logits auxiliary initial_weights
    gumbel replacements replacement_codec replacement_shard replacement_store
    discriminator metrics objectives joint decoupled replay trained
    optim model_flops paper_flops flops run_flops deepspeed_config run_state run_folder verified command_line summary
    slurm preemption failure watchdog shared_memory heap injection broken_updates gradient_sums torchs_linear
    buffers parallel fetching sharded_weights stop_vote auxiliary_engine universal layout checkpoint export
    choices setup_run precompute
    health progress pretrain status row_text
    layer_decay glue squad scores tasks task_head finetune finetune_runs
"""
FLOW = _FLOW.split()
_EDGE = "broken_updates gradient_sums injection parallel sharded_weights stop_vote universal checkpoint"
EDGE = set(_EDGE.split())
EDGE_PACKAGES = ("torch.distributed", "deepspeed", "megatron.core.parallel_state")


def imports(path):
    """(module, where) of every import of the file, imports from the package as `fast_electra.NAME`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "fast_electra":
            yield from (f"fast_electra.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place_in_the_flow():
    present = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert present <= set(FLOW), f"give {sorted(present - set(FLOW))} a place in FLOW"


def test_modules_import_only_upstream():
    for path in PACKAGE.glob("*.py"):
        for module in imports(path):
            if module.startswith("fast_electra.") and path.stem in FLOW:
                target = module.split(".")[1]
                assert FLOW.index(target) < FLOW.index(path.stem), f"{path.stem} imports {target}, which is downstream"


def test_only_the_edge_knows_of_processes():
    for path in PACKAGE.glob("*.py"):
        for module in imports(path):
            if path.stem not in EDGE:
                assert not module.startswith(EDGE_PACKAGES), f"{path.stem} imports {module}"


def test_modules_can_be_read_in_a_sitting():
    for path in PACKAGE.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 310, f"{path.name} is too long; split it by stage"
