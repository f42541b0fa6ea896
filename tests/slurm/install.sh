#!/bin/bash
# What cluster.sh needs: installed from Debian's packages by root, named otherwise.
set -euo pipefail

programs=(slurmctld slurmd sbatch munged ip) missing=()
for program in "${programs[@]}"; do
    command -v "$program" >/dev/null || missing+=("$program")
done
((${#missing[@]} == 0)) && exit 0
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}; install slurm-wlm, munge and iproute2 (as root on Debian, this does it)" >&2
    exit 1
fi
apt-get update --quiet
DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends slurm-wlm munge iproute2
