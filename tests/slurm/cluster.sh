#!/bin/bash
# A SLURM cluster of two hosts on this machine, for tests: slurmctld here, a slurmd in each of two network namespaces
# with an address, a name and a /dev/shm of its own. It stands until this script is ended, which takes all of it down.
#
#   tests/slurm/cluster.sh FOLDER        prints "ready" when jobs can be submitted with SLURM_CONF=FOLDER/slurm.conf
#
# Needs root, slurm-wlm, munge and iproute2 (`make slurm` installs the Debian packages). Nothing of the machine's own
# SLURM, munge or /etc is read or changed. No cgroups: processes are followed by proctrack/linuxproc.
set -euo pipefail

folder=$(realpath "$1")
# Numbers of this script's own, so that two clusters can stand side by side.
network=10.$((200 + $$ / 250 % 50)).$(($$ % 250)) port=$((12000 + $$ % 10000 * 2)) id=fe$(($$ % 1000000))
controller=$network.1 controller_name=$(hostname -s)
hosts=(fe-node1 fe-node2) addresses=("$network.11" "$network.12")
daemons=()

stop() {
    trap - EXIT INT TERM
    ((${#daemons[@]} == 0)) || kill "${daemons[@]}" 2>/dev/null || true
    for host in "${hosts[@]}"; do
        ip netns pids "$id-$host" 2>/dev/null | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
        ip netns delete "$id-$host" 2>/dev/null || true
    done
    ip link delete "$id" 2>/dev/null || true
    wait
}
trap stop EXIT
trap 'exit 143' INT TERM

connect_hosts() {
    ip link add "$id" type bridge
    ip address add "$controller/24" dev "$id"
    ip link set "$id" up
    for i in "${!hosts[@]}"; do
        space=$id-${hosts[i]}
        ip netns add "$space"
        ip link add "$id-$i" type veth peer name eth0 netns "$space"
        ip link set "$id-$i" master "$id" up
        ip -netns "$space" address add "${addresses[i]}/24" dev eth0
        ip -netns "$space" link set lo up
        ip -netns "$space" link set eth0 up
        echo "${addresses[i]} ${hosts[i]}" >>"$folder/hosts"
    done
    echo "127.0.0.1 localhost" >>"$folder/hosts"
}

write_settings() {
    mkdir -p "$folder"/{munge,state,log}
    mkdir -p "${hosts[@]/#/$folder/spool/}"
    chmod 755 "$folder" "$folder/munge"
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
    chmod 400 "$folder/munge/key"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$controller_name($controller)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# after a requeue a job waits this long, by default two minutes
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%h
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%h.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%h.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
NodeName=${hosts[0]} NodeAddr=${addresses[0]} CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1
NodeName=${hosts[1]} NodeAddr=${addresses[1]} CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1
PartitionName=test Nodes=ALL Default=YES State=UP
CONF
    # slurmd loads a cgroup plugin in any case; v1 touches nothing here, and "disabled" is not known to old versions
    local plugin=disabled
    [[ $(slurmd -V) =~ \ (2[0-2]|23\.0)\. ]] && plugin=cgroup/v1
    echo "CgroupPlugin=$plugin" >"$folder/cgroup.conf"
}

start_daemons() {
    munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --seed-file="$folder/munge/seed" \
        --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" >"$folder/log/munged" 2>&1 &
    daemons+=($!)
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -D >"$folder/log/slurmctld" 2>&1 &
    daemons+=($!)
    for host in "${hosts[@]}"; do
        nsenter --net="/run/netns/$id-$host" unshare --mount --uts bash -c "
            hostname $host && mount --bind '$folder/hosts' /etc/hosts && mount -t tmpfs tmpfs /dev/shm && exec slurmd -D
        " >"$folder/log/slurmd-$host" 2>&1 &
        daemons+=($!)
    done
}

write_settings
connect_hosts
start_daemons
for _ in {1..300}; do
    [[ $(sinfo --noheader --format=%D --states=idle 2>/dev/null) == "${#hosts[@]}" ]] && ready=yes && break
    sleep 0.2
done
[[ -n ${ready:-} ]] || exit 1
echo ready
wait "${daemons[@]}"
