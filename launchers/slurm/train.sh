# Read by the job scripts beside it: one srun task per process, logs per rank, back into the queue when told to stop.
#
# The processes find each other by SLURM's own variables (fast_electra/slurm.py); no pdsh, no ssh. Where that fails:
#   MASTER_ADDR, MASTER_PORT   name another address or port of the first node
#   GLOO_SOCKET_IFNAME         the interface between the nodes, such as eth0 or ib0, when `getent hosts $(hostname)` on
#                              a node gives 127.0.0.1 or 127.0.1.1: gloo else offers the other nodes that address,
#                              and they say "Gloo connectFullMesh failed ... Connection refused"
#   NCCL_SOCKET_IFNAME         the same for NCCL on GPUs

export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1

# train OUTPUT [arguments of launchers/pretrain.py]: trains into OUTPUT, logs to OUTPUT.logs/rank-N.log.
# Status 75 means told to stop, saved: the job queues again and goes on from there. --wait bounds how long, in seconds,
# the others wait for a process that died.
train() {
    local output=$1 status=0
    shift
    if [[ -n ${SLURM_GPUS_ON_NODE:-} && ${SLURM_NTASKS_PER_NODE:-1} != "$SLURM_GPUS_ON_NODE" ]]; then
        echo "error: ${SLURM_NTASKS_PER_NODE:-1} tasks for $SLURM_GPUS_ON_NODE GPUs on a node; one process drives one" \
            "GPU: add --ntasks-per-node=$SLURM_GPUS_ON_NODE to sbatch" >&2
        return 2
    fi
    mkdir -p "$output.logs"
    echo "$(date '+%F %T') start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST: logs in $output.logs"
    srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --wait=120 --open-mode=append --output="$output.logs/rank-%t.log" \
        python launchers/pretrain.py --deepspeed ds_configs/zero3.json --output "$output" "$@" || status=$?
    echo "$(date '+%F %T') ended with status $status"
    if ((status == 75)); then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return $status
}
