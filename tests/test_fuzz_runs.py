"""What a run reads beside its corpus, damaged in every way that damage.py knows: read right, or refused by name."""

import dataclasses
import json
import string
from dataclasses import replace

import pytest
from damage import (
    FIELDS,
    REFUSED,
    RIGHT,
    Field,
    Insert,
    Odd,
    Replace,
    Swap,
    apply,
    cases,
    damages,
    explore,
    fresh,
    resealed,
    right_or_refused,
    time_limit,
)
from hypothesis import strategies as st
from test_replacement_store import PROVENANCE, build

from fast_electra.checkpoints import checkpoint
from fast_electra.corpora.manifest import hash_file
from fast_electra.engine import deepspeed_config
from fast_electra.files import json_file
from fast_electra.replacements.replacement_store import ReplacementStore
from fast_electra.runs import command_line, run_folder, summary
from fast_electra.settings import config_file, recipes

IDENTITY = {
    name: value
    for name, value in dataclasses.asdict(PROVENANCE).items()
    if name not in ("auxiliary", "grid", "num_draws", "rows_per_shard", "format")
}
NOTHING = Insert(0, b"", False)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Replacement paths, and others of the same rows by another auxiliary model with other shards and temperatures."""
    folder = tmp_path_factory.mktemp("paths")
    grid = PROVENANCE.grid._replace(last=PROVENANCE.grid.last - 1)
    build(folder / "case")
    build(folder / "other", replace(PROVENANCE, auxiliary="other", rows_per_shard=5, num_draws=3, grid=grid))
    return folder


@cases(quick=40, long=1000)
def test_replacement_paths_give_their_tokens_or_none(paths, tmp_path, examples):
    def tokens(folder):
        store = ReplacementStore(folder, **IDENTITY)
        store.verify()
        found = [store.tokens_at(range(PROVENANCE.num_keys), temperature) for temperature in (1.0, 1.37, 3.9)]
        assert all(each.min() >= 0 and each.max() < PROVENANCE.vocab_size for each in found)
        return [each.tolist() for each in found]

    whole = tokens(paths / "case")

    def check(case):
        with fresh(tmp_path / "hurt", paths / "case") as folder:
            apply(case, folder, paths / "other")
            return right_or_refused(
                lambda: tokens(folder), ... if resealed(case) else whole, folder, "the replacement paths"
            )

    shards = [f"shard-{shard:05d}.bin" for shard in range(4)]
    known = [[("manifest.json", NOTHING)]]
    known += [[("manifest.json", Field(node, value, "set", True))] for node in range(24) for value in FIELDS[3:8]]
    manifest = ["manifest.json"]
    outcomes = explore(check, damages([*manifest, *shards], manifest, manifest), examples, known)
    assert outcomes[RIGHT] and outcomes[REFUSED]


def make_checkpoint(folder, step):
    path = folder / f"step-{step:08d}"
    (path / "zero").mkdir(parents=True)
    files = {}
    for name in ("zero/rank0.pt", "model.pt"):
        (path / name).write_bytes(bytes(range(256)) * step)
        files[name] = {"bytes": 256 * step, "xxh3_128": hash_file(path / name)}
    manifest = {"step": step, "rows_seen": step * 8, "seconds": 1.5, "num_processes": 1, "files": files}
    (path / "manifest.json").write_text(json.dumps(json_file.sealed(manifest), indent=2))


@cases(quick=40, long=1000)
def test_the_newest_whole_checkpoint_is_taken_whatever_happened_to_the_last(tmp_path, examples):
    for step in (1, 2, 3):
        make_checkpoint(tmp_path / "whole", step)
    make_checkpoint(tmp_path / "other", 3)
    make_checkpoint(tmp_path / "other", 4)
    (tmp_path / "other" / "step-00000004").replace(tmp_path / "others")
    (_, whole), second = checkpoint.newest_sound(tmp_path / "whole"), tmp_path / "whole" / "step-00000002"
    before = json_file.read(second / "manifest.json", "")

    def check(case):
        with fresh(tmp_path / "hurt", tmp_path / "whole") as folder, time_limit():
            newest = folder / "step-00000003"
            apply(case, newest, tmp_path / "others")
            path, manifest = checkpoint.newest_sound(folder)
            if path == newest:
                checkpoint.Position(*(manifest[name] for name in checkpoint.Position._fields))
                assert manifest == whole or resealed(case)
                return RIGHT
            assert path.name == second.name and manifest == before
            assert sorted(one.name for one in folder.iterdir())[2:] == ["step-00000003.damaged"]
            return REFUSED

    files = ["manifest.json", "zero/rank0.pt", "model.pt"]
    known = [[("manifest.json", NOTHING)], [("manifest.json", Replace(b'{"step": 1e999}'))]]
    known += [[("manifest.json", Field(node, value, "set", True))] for node in range(12) for value in FIELDS[6:14]]
    outcomes = explore(check, damages(files, files[:1], files[:1]), examples, known)
    assert outcomes[RIGHT] and outcomes[REFUSED]


SUMMARY = {
    "recipe": "demo",
    "objective": "frozen",
    "loss": 0.3,
    "floor": 0.4,
    "roc_auc": 0.7,
    "steps": 750,
    "tokens": 9,
    "weights": 10,
    "seconds": 2.0,
    "num_processes": 1,
    "dtype": "float32",
    "tokens_per_second": 4.5,
    "mfu": 0.1,
    "export": "x",
    "measured_peak_tflops": 0.5,
    "peak_memory_gib": 1.0,
    "export_logit_difference": 0.0,
    "model_class": "M",
}
INPUTS = {"corpus data/wiki": "c0ffee", "zero_stage": 3, "auxiliary_weights": "a0c"}
ROWS = [{"step": step, "loss": 1 / step, "held_out": {"roc_auc": None}} for step in range(1, 20)]


@pytest.fixture
def runs(tmp_path):
    """Two runs of the same files, `case` and `other`."""
    for name, seed in (("case", 0), ("other", 1)):
        folder = tmp_path / name
        run_folder.claim(replace(recipes.get("demo"), output=str(folder), seed=seed))
        (folder / "checkpoints").mkdir()
        run_folder.bind(str(folder), INPUTS | {"zero_stage": 3 - seed})
        run_folder.write_summary(str(folder), SUMMARY | {"steps": 750 + seed})
        log = run_folder.MetricsLog(str(folder), 0)
        for row in ROWS:
            log.write(row | {"loss": seed})
    return tmp_path


def claimed(folder):
    config = replace(recipes.get("demo"), output=str(folder))
    run_folder.claim(config)
    saved, meant = (
        run_folder.flatten(config_file.to_dict(c)) for c in (config_file.load(folder / "config.json"), config)
    )
    assert all(saved[name] == meant[name] or name in run_folder._FREE for name in meant)


def summarised(folder):
    found = run_folder.read_summary(str(folder))
    assert found is None or summary.describe(found)
    return found in (SUMMARY, None)


@cases(quick=25, long=400)
@pytest.mark.parametrize(
    ("name", "read", "expected"),
    [
        ("config.json", claimed, None),
        ("inputs.json", lambda folder: run_folder.bind(str(folder), INPUTS), None),
        ("summary.json", summarised, True),
    ],
)
def test_a_run_goes_on_as_it_was_or_is_refused(runs, name, read, expected, examples):
    def check(case):
        with fresh(runs / "hurt", runs / "case") as folder:
            apply(case, folder, runs / "other")
            if name == "summary.json" and (name, Swap()) in case:
                return REFUSED  # which of two runs a summary is of, it does not say
            return right_or_refused(lambda: read(folder), expected, folder)

    assert {RIGHT, REFUSED} == explore(check, damages([name], [name]), examples, [[(name, NOTHING)]]).keys()


@cases(quick=25, long=400)
def test_a_damaged_log_of_metrics_keeps_every_row_that_is_whole(runs, examples):
    def check(case):
        with fresh(runs / "hurt", runs / "case") as folder:
            path = folder / "metrics.jsonl"
            lines = path.read_text().splitlines()
            apply(case, folder, runs / "other")
            damaged = path.read_bytes().split(b"\n")[:-1] if path.is_file() and not path.is_symlink() else []

            def resumed():
                run_folder.MetricsLog(str(folder), 15)
                kept = path.read_text().split("\n")[:-1]
                assert all(type(json.loads(line)["step"]) is int for line in kept)
                assert {line for line in lines[:15] if line.encode() in damaged} <= set(kept)

            return right_or_refused(resumed, None, path)

    known = [[("metrics.jsonl", Insert(0, b"\x00" * 4096, False))], [("metrics.jsonl", Odd("pipe"))]]
    assert {RIGHT, REFUSED} == explore(check, damages(["metrics.jsonl"]), examples, known).keys()


@cases(quick=40, long=800)
def test_deepspeed_settings_are_filled_in_or_refused(tmp_path, examples):
    recipe = recipes.get("demo")
    demo = replace(recipe, run=replace(recipe.run, dtype="bfloat16"))

    def check(case):
        (tmp_path / "case.json").write_text(json.dumps(deepspeed_config.read("ds_configs/zero3_offload.json")))
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "case.json").write_text(json.dumps(deepspeed_config.read("ds_configs/zero1.json")))
        apply(case, tmp_path, tmp_path / "other")

        def filled():
            values = deepspeed_config.fill(deepspeed_config.read(str(tmp_path / "case.json")), demo, 2, on_cpu=True)
            assert deepspeed_config.zero_stage(values) in (1, 2, 3)
            assert values["train_batch_size"] == demo.run.batch_rows

        try:
            return right_or_refused(filled, ..., tmp_path / "case.json", "DeepSpeed JSON")
        finally:
            path = tmp_path / "case.json"
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    known = [[("case.json", Field(node, value, "set"))] for node in range(12) for value in ("null", "[]", "true")]
    assert {RIGHT, REFUSED} == explore(check, damages(["case.json"], ["case.json"]), examples, known).keys()


def parsed(arguments):
    """The config; its values are of their types, and it survives being saved and loaded."""
    config, deepspeed = command_line.parse(arguments, "")
    assert isinstance(deepspeed, str)
    again = json.loads(json.dumps(config_file.to_dict(config), allow_nan=False))
    assert config_file.from_dict(again) == config
    return config


@cases(quick=25, long=600)
def test_settings_in_yaml_are_taken_or_refused(tmp_path, examples):
    demo = replace(recipes.get("demo"), seed=5)
    for folder, text in ((tmp_path, json.dumps(config_file.to_dict(demo))), (tmp_path / "other", "seed: 6\n")):
        folder.mkdir(exist_ok=True)
        (folder / "mine.yaml").write_text(text)
    whole = (tmp_path / "mine.yaml").read_bytes()
    path = tmp_path / "mine.yaml"

    def check(case):
        apply(case, tmp_path, tmp_path / "other")
        try:
            return right_or_refused(lambda: parsed(["--config", str(path)]), ..., path)
        finally:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            path.write_bytes(whole)

    assert parsed(["--config", str(path)]) == demo
    hostile = [
        *(b"run: &a\n  x: *a\n", b"data: &a [*a]", b"a: &a [x, x]\nb: &b [*a, *a]\n", b"- 1", b"5", b"seed: null"),
        *(b"run: null", b"run: [1]", b"run: /dev/zero", b"seed: \x00", b"seed: 2020-13-45", b"{[1]: 2}", b"? ? ?"),
        *(b'seed: !!python/object/apply:os.system ["false"]', b"config: other.yaml", b"deepspeed: [1]", b"run: {a: "),
        *(b"seed: " + digits for digits in (b"9" * 500, b"9" * 5000, b".nan", b"-.inf", b"1_0", b"0o17", b"1:30")),
        *(b"optimizer: {weight_decay: .nan}", b"recipe: 1e-999", b"\xfe\xff\x00s", b"recipe: small\n"),
    ]
    known = [[("mine.yaml", Replace(content))] for content in hostile]
    assert {RIGHT, REFUSED} == explore(check, damages(["mine.yaml"], ["mine.yaml"]), examples, known).keys()


OPTIONS = sorted(f"--{name}" for name in run_folder.flatten(config_file.to_dict(recipes.get("demo"))))
GROUPS = ["--data", "--run", "--encoder", "--auxiliary_model.encoder", "--config", "--deepspeed", "--local_rank"]
VALUES = [json.loads(f"[{field}]")[0] for field in FIELDS if field.startswith('"')] + [
    *(field[:200] for field in FIELDS),
    *(
        "",
        " ",
        "\n",
        "-",
        "--",
        "=",
        "null",
        "nan",
        "1e3",
        "{a: 1}",
        "[1",
        "*a",
        "&a",
        "!!x",
        "/dev/zero",
        "\udcff",
        "@x",
    ),
]


@cases(quick=40, long=800)
def test_a_command_line_is_taken_or_refused(examples):
    named = ("the command line", "is no setting", "recipe", "--config")

    def check(case):
        arguments = [part for option, value, way in case for part in way(option, value)]
        try:
            return right_or_refused(lambda: parsed(arguments), ..., *named)
        except SystemExit as ended:
            assert ended.code == 0 and {"--help", "-h", "--print_config"} & {a.partition("=")[0] for a in arguments}
            return "answered"

    options = st.sampled_from([*OPTIONS, *GROUPS]) | st.text(string.printable, max_size=6)
    values = st.sampled_from(VALUES) | st.text(max_size=8)
    ways = st.sampled_from(
        [lambda option, value: [option, value], lambda option, value: [f"{option}={value}"], lambda option, _: [option]]
    )
    outcomes = explore(check, st.lists(st.tuples(options, values, ways), min_size=1, max_size=2), examples)
    assert outcomes[RIGHT] and outcomes[REFUSED]
