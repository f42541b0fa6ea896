#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine without a network, in 10 minutes: rows for the report, and logs.
#
#   benchmarks/gpu.sh OUTPUT [WHEELS]      WHEELS: a folder of the wheels that the machine lacks
#   TINY=1 benchmarks/gpu.sh OUTPUT        the same on tiny shapes, to try the script where there is no GPU
#
# Each part has a time limit and a log of its own and does not stop the others; the status is how many failed. Put
# OUTPUT's *.jsonl together into benchmarks/results/NAME.jsonl and name that to `python -m benchmarks.report --rows`.
set -uo pipefail
cd "$(dirname "$0")/.."
output=$(mkdir -p "$1" && realpath "$1") wheels=${2:-}
failed=0
if [[ -n $wheels ]]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$output/.site" "$wheels"/*.whl || exit
    export PYTHONPATH=$output/.site:$PWD
    export PATH=$output/.site/bin:$PATH
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
    timeout "$limit" "$@" >"$output/$name.log" 2>&1 || status=$?
    ((status == 0)) || failed=$((failed + 1))
    printf '%-12s status %-4s %4d s   %s\n' "$name" "$status" $((SECONDS - begun)) "$(tail -n 1 "$output/$name.log" | cut -c -100)"
}

base=() large=() engines=() replay=(base/frozen) training=()
if [[ -n ${TINY:-} ]]; then
    base=(demo/{frozen,replay,joint_shallow,mlm}/32/200/masked/2 demo/joint_plain/32/200/all/2) large=(small/{frozen,joint_shallow}/32/200/masked/2)
    engines=(electra_small/frozen/32/200/masked/2) replay=(demo/frozen/32/200/masked/2)
    training=(--run.steps 20 --auxiliary_model.steps 20 --auxiliary_gate false)
else
    base=(base/{frozen,replay,two_stage,joint_shallow,joint_gdes,joint_decoupled,mlm,joint_plain})
    large=(large/{frozen,replay,joint_shallow,joint_gdes,mlm})
    engines=(electra_base/frozen base/frozen)
fi
python3 -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
part engines 75 python3 -m benchmarks.engines "${engines[@]}" --output "$output"
part base 150 python3 -m benchmarks.measure "${base[@]}" --compile yes --output "$output"
part large 150 python3 -m benchmarks.measure "${large[@]}" --compile yes --output "$output"
part replay 45 python3 -m benchmarks.replay "${replay[@]}" --output "$output"
part training 75 deepspeed --master_port $((20000 + $$ % 20000)) launchers/pretrain.py --deepspeed ds_configs/zero3.json --output "$output/run" "${training[@]}"
part tests 60 python3 -m pytest -q -m gpu tests
exit "$failed"
