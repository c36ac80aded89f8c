#!/usr/bin/env bash
# A Slurm cluster of this one machine, on loopback, for tests: controller, daemon, preemption with requeue.
#
#   scripts/one-node-slurm.sh start DIR     and then: export SLURM_CONF=DIR/slurm.conf
#   scripts/one-node-slurm.sh stop DIR
#
# Needs Debian's slurm-wlm and munge (apt-get install slurm-wlm munge) and root. Partition `low` is preempted by `high`.
set -euo pipefail
action=${1:?start or stop}
mkdir -p "${2:?a folder for state and logs}"
D=$(cd "$2" && pwd)

# Before 23.02 Slurm knows no machine without cgroups in containers; nothing here needs them.
conf() {
  cat <<EOF
ClusterName=one
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.pid
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/slurmd.log
SlurmctldPort=${UQHARNESS_SLURM_PORT:-16817}
SlurmdPort=$((${UQHARNESS_SLURM_PORT:-16817} + 1))
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=5,sched_interval=5
KillWait=5
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=10
EOF
}

case $action in
  start)
    mkdir -p "$D/state" "$D/spool" /run/munge
    conf > "$D/slurm.conf"
    if [ ! -f /etc/munge/munge.key ]; then
      install -d -o munge -g munge -m 700 /etc/munge
      head -c 1024 /dev/urandom > /etc/munge/munge.key
      chown munge: /etc/munge/munge.key && chmod 400 /etc/munge/munge.key
    fi
    chown munge: /run/munge && chmod 755 /run/munge
    munge -n > /dev/null 2>&1 || setpriv --reuid munge --regid munge --clear-groups munged
    slurmctld -f "$D/slurm.conf"
    slurmd -f "$D/slurm.conf" -N localhost
    export SLURM_CONF="$D/slurm.conf"
    for _ in $(seq 30); do
      sinfo -h -o %T 2> /dev/null | grep -q idle && exec sinfo
      sleep 1
    done
    echo "Slurm did not start: see $D/slurmctld.log and $D/slurmd.log" >&2
    exit 1
    ;;
  stop)
    for name in slurmd slurmctld; do
      [ -f "$D/$name.pid" ] && kill "$(cat "$D/$name.pid")" 2> /dev/null || true
    done
    ;;
  *) echo "give start or stop, not $action" >&2; exit 2 ;;
esac
