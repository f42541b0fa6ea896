# Read by the job scripts beside it: one srun task per process, logs per rank, back into the queue when told to stop.
#
# The processes find each other by SLURM's own variables (fast_electra/runs/slurm.py); no pdsh, no ssh. Where that fails:
#   MASTER_ADDR, MASTER_PORT   name another address or port of the first node
#   GLOO_SOCKET_IFNAME         the interface between the nodes, such as eth0 or ib0, when `getent hosts $(hostname)` on
#                              a node gives 127.0.0.1 or 127.0.1.1: gloo else offers the other nodes that address,
#                              and they say "Gloo connectFullMesh failed ... Connection refused"
#   NCCL_SOCKET_IFNAME         the same for NCCL on GPUs

export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1

# train OUTPUT [arguments of launchers/pretrain.py]
train() {
    start launchers/pretrain.py "$@"
}

# start PROGRAM OUTPUT [its arguments]: works into OUTPUT, or what --output among the arguments names, and logs to
# OUTPUT.logs/rank-N.log. Status 75 means told to stop, saved: the job queues again and goes on from there, unless three
# such starts in a row saved nothing new. --wait bounds how long, in seconds, the others wait for a process that died.
#
# ZeRO-1: ZeRO-3 moves the weights at every micro-batch, and DeepSpeed cuts each gradient into a piece for each process
# in a Python loop (on a CPU, for base, about .3 s a micro-batch at 256 processes and .7 s at 1,000; LOG.md). It is for
# models that do not fit otherwise: --deepspeed ds_configs/zero3.json. Of two such options the later counts.
start() {
    local program=$1 output=$2 stops=$2.logs/stops-without-progress status=0
    shift 2
    if [[ -n ${SLURM_GPUS_ON_NODE:-} && ${SLURM_NTASKS_PER_NODE:-1} != "$SLURM_GPUS_ON_NODE" ]]; then
        echo "error: ${SLURM_NTASKS_PER_NODE:-1} tasks for $SLURM_GPUS_ON_NODE GPUs on a node; one process drives one" \
            "GPU: add --ntasks-per-node=$SLURM_GPUS_ON_NODE to sbatch" >&2
        return 2
    fi
    mkdir -p "$output.logs"
    : >>"$stops" # a line for each such start; what was saved since the last of them is newer than the file
    echo "$(date '+%F %T') start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST: logs in $output.logs"
    srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --wait=120 --open-mode=append --output="$output.logs/rank-%t.log" \
        python "$program" --deepspeed ds_configs/zero1.json --output "$output" "$@" || status=$?
    echo "$(date '+%F %T') ended with status $status"
    if ((status != 75)) || saved_since "$stops" "$(last_output "$output" "$@")"; then
        rm -f "$stops"
    else
        date '+%F %T' >>"$stops"
        if (($(wc -l <"$stops") >= 3)); then
            rm -f "$stops" # whoever submits or queues it again has three more
            echo "error: 3 starts in a row were told to stop before they had saved anything new, and the job does not" \
                "queue again. The time limit leaves too little beyond the lead of --signal: raise --time, or lessen" \
                "the lead, 60 s in --signal=USR1@60; $output.logs says how far they came" >&2
            return 2
        fi
    fi
    if ((status == 75)); then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return $status
}

# last_output OUTPUT [arguments]: what the last --output among the arguments names, else OUTPUT.
last_output() {
    local output=$1 before= argument
    shift
    for argument in "$@"; do
        [[ $before != --output ]] || output=$argument
        [[ $argument != --output=* ]] || output=${argument#--output=}
        before=$argument
    done
    echo "$output"
}

# saved_since FILE OUTPUT: whether OUTPUT holds, newer than FILE, a whole checkpoint, of the run or of the auxiliary
# model that it trains first, or a shard of replacement paths.
saved_since() {
    [[ -n $(find -L "$2" -maxdepth 4 -newer "$1" \( -path '*/checkpoints/step-*[0-9]/manifest.json' -o \
        -name 'shard-*.bin' \) -print -quit 2>/dev/null) ]]
}
