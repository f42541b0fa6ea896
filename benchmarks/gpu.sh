#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine without a network, in 9 minutes: rows for the report, and logs.
#
#   benchmarks/gpu.sh OUTPUT [WHEELS]      WHEELS: a folder of the wheels that the machine lacks
#   TINY=1 benchmarks/gpu.sh OUTPUT        the same on tiny shapes, to try the script where there is no GPU
#
# Each part has a time limit and a log of its own and does not stop the others; the status is how many failed. Put
# OUTPUT's *.jsonl together into benchmarks/results/NAME.jsonl and name that to `python -m benchmarks.report --rows`.
# What may hang or never return, DeepSpeed's kernels, comes last, and builds where no other part waits for it.
set -uo pipefail
cd "$(dirname "$0")/.."
output=$(mkdir -p "$1" && realpath "$1") wheels=${2:-} scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0
if [[ -n $wheels ]]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$scratch/site" "$wheels"/*.whl || exit
    export PYTHONPATH=$scratch/site:$PWD
    export PATH=$scratch/site/bin:$PATH
    # The CUDA headers that torch's own wheels bring: DeepSpeed compiles its kernels against them.
    CPATH=$(python3 -c 'import pathlib, torch; print(next(pathlib.Path(torch.__file__).parents[1].glob("nvidia/cu*/include"), ""))')
    export CPATH
    # As DeepSpeed reads it: an image may name an architecture such as 9.0a, which it takes for no number.
    TORCH_CUDA_ARCH_LIST=$(python3 -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
    export TORCH_CUDA_ARCH_LIST
fi

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 begun=$SECONDS status=0
    shift 2
    timeout -k 5 "$limit" "$@" >"$output/$name.log" 2>&1 || status=$?
    ((status == 0)) || failed=$((failed + 1))
    printf '%-12s status %-4s %4d s   %s\n' "$name" "$status" $((SECONDS - begun)) "$(tail -n 1 "$output/$name.log" | cut -c -100)"
}

train() { # FOLDER JSON SETTINGS...
    deepspeed --master_port $((20000 + $$ % 20000)) launchers/pretrain.py --deepspeed "ds_configs/$2.json" --output "$scratch/$1" \
        --auxiliary_gate false "${@:3}"
}
export scratch
export -f train

if [[ -n ${TINY:-} ]]; then
    base=(demo/{frozen,replay}/32/200/masked/2 demo/joint_plain/32/200/all/2) large=(small/{frozen,joint_shallow}/32/200/masked/2)
    engines=(electra_small/frozen/32/200/masked/2) one=demo/frozen/32/200/masked/2 steps=10
else
    base=(base/{frozen,replay,joint_shallow,joint_plain}) large=(large/{frozen,joint_shallow})
    engines=(electra_base/frozen base/frozen) one=base/frozen steps=150
fi
again="--corpus $scratch/run/corpus --auxiliary $scratch/run/auxiliary/export --run.steps $steps"
whole="--run.steps $steps --auxiliary_model.steps $steps --run.evaluate_every $((steps / 2)) --run.save_every $((steps / 2))"
python3 -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
part tests 50 python3 -m pytest -q -m gpu tests
part training 60 bash -c "train run zero3 $whole"
part separated 40 bash -c "train apart zero1 $again --run.stop_at_step 10 --data.separate_documents true"
part base 120 python3 -m benchmarks.measure "${base[@]}" --compile yes --output "$output"
part overhead 50 python3 -m benchmarks.overhead "$one" --compile --micro_batches 4 --turns 5
part replay 30 python3 -m benchmarks.replay "$one" --output "$output"
part large 80 python3 -m benchmarks.measure "${large[@]}" --compile yes --output "$output"
part offload 50 bash -c "train offload zero3_offload $again --run.stop_at_step 2"
TORCH_EXTENSIONS_DIR=$scratch/extensions part engines 60 python3 -m benchmarks.engines "${engines[@]}" --output "$output"
exit "$failed"
