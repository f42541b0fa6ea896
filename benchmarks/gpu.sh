#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine without a network, in 9 minutes: rows for the report, and logs.
#
#   benchmarks/gpu.sh OUTPUT [WHEELS]      WHEELS: a folder of the wheels that the machine lacks
#   TINY=1 benchmarks/gpu.sh OUTPUT        the same on tiny shapes, to try the script where there is no GPU
#   PARTS="tests engines" benchmarks/...   these alone
#   SECONDS_IN_ALL=300 benchmarks/...      in less time, or more
#
# Each part has a time limit and a log of its own and does not stop the others; one for which less than 20 s are left is
# left out; the status is how many failed or were. Put OUTPUT's *.jsonl together into benchmarks/results/NAME.jsonl and
# name that to `python -m benchmarks.report --rows`. Each part builds operators in a folder of its own: one that is
# killed as it builds leaves a lock, for which others would wait. What may never return, DeepSpeed's kernels, comes last.
set -uo pipefail
cd "$(dirname "$0")/.."
output=$(mkdir -p "$1" && realpath "$1") wheels=${2:-} scratch=$(mktemp -d)
parts=${PARTS:-tests training joint separated base overhead replay large products offload engines} in_all=${SECONDS_IN_ALL:-540}
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
    # They bring libcurand under its full name alone, and DeepSpeed's kernels are linked with -lcurand.
    mkdir -p "$scratch/lib"
    curand=$(python3 -c 'import pathlib, torch; print(next(pathlib.Path(torch.__file__).parents[1].glob("nvidia/cu*/lib/libcurand.so.*"), ""))')
    [[ -z $curand ]] || ln -s "$curand" "$scratch/lib/libcurand.so"
    export LIBRARY_PATH=$scratch/lib${LIBRARY_PATH:+:$LIBRARY_PATH}
fi

python3 -c 'import benchmarks.measure, fast_electra.pretraining.pretrain, fast_electra.runs.command_line' || {
    echo "$0: packages are missing (see above): add their wheels to the folder named" >&2
    exit 2
}

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 begun=$SECONDS status=0
    shift 2
    [[ " $parts " == *" $name "* ]] || return 0
    ((limit <= in_all - SECONDS)) || limit=$((in_all - SECONDS))
    if ((limit < 20)); then
        echo "$name: no time was left for it"
        failed=$((failed + 1))
        return 0
    fi
    TORCH_EXTENSIONS_DIR=$scratch/extensions/$name timeout -k 5 "$limit" "$@" >"$output/$name.log" 2>&1 || status=$?
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
    engines=(electra_small/frozen/32/200/masked/2) one=demo/frozen/32/200/masked/2 steps=10 length=160
else
    base=(base/{frozen,replay,joint_shallow,joint_plain}) large=(large/{frozen,joint_shallow})
    engines=(electra_base/frozen base/frozen) one=base/frozen steps=150 length=512
fi
again="--corpus $scratch/run/corpus --auxiliary $scratch/run/auxiliary/export --run.steps $steps"
whole="--run.steps $steps --auxiliary_model.steps $steps --run.evaluate_every $((steps / 2)) --run.save_every $((steps / 2))"
# Rows of several of FlexAttention's blocks, and no auxiliary model that another part has to leave first.
apart="--objective random --data.sequence_length $length --encoder.max_positions $length --data.separate_documents true"
python3 -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
part tests 60 python3 -m pytest -q -m gpu tests
part training 130 bash -c "train run zero3 $whole"
part joint 90 bash -c "train joint zero3 --objective joint_shallow --run.steps $steps --run.stop_at_step 10"
part separated 90 bash -c "train apart zero1 $apart --run.steps $steps --run.stop_at_step 10"
part base 120 python3 -m benchmarks.measure "${base[@]}" --compile yes --micro_batches 4 --steps 3 --turns 5 --output "$output"
part overhead 50 python3 -m benchmarks.overhead "$one" --compile --micro_batches 4 --turns 5
part replay 70 python3 -m benchmarks.replay "$one" --output "$output"
part large 100 python3 -m benchmarks.measure "${large[@]}" --compile yes --micro_batches 4 --steps 2 --turns 4 --output "$output"
part products 100 python3 -m benchmarks.products "${base[@]:0:2}" --compile --micro_batches 4 --turns 5 --output "$output"
part offload 120 bash -c "train offload zero3_offload --run.compile false $again --run.stop_at_step 2"
part engines 180 python3 -m benchmarks.engines "${engines[@]}" --output "$output"
exit "$failed"
