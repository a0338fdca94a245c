#!/usr/bin/env bash
# A real Slurm of two nodes, n1 and n2, on this one machine: for tests of what runs on Slurm.
#
#   slurm/local_cluster.sh start     munged, slurmctld and two slurmd; needs root and Debian's slurm-wlm and munge
#   slurm/local_cluster.sh stop
#   slurm/local_cluster.sh status
#
# Jobs of the partition urgent take nodes from those of main, which are told a minute before and go back into the queue.
# Everything it writes is in FOLDER (default /tmp/ldm-slurm), but for two names in /etc/hosts. Clients find it by
# SLURM_CONF=$FOLDER/slurm.conf, which `start` prints.
set -euo pipefail

FOLDER="${FOLDER:-/tmp/ldm-slurm}"
CPUS="${CPUS:-$(nproc)}" # of each node: both may use all of them
PORT="${PORT:-17000}"
export PATH="$PATH:/usr/sbin:/sbin"

need() {
    for program in munged slurmctld slurmd sinfo; do
        command -v "$program" >/dev/null || {
            echo "$program is not installed: apt-get install -y slurm-wlm munge" >&2
            exit 3
        }
    done
    [ "$(id -u)" -eq 0 ] || {
        echo "slurm's daemons are started by root" >&2
        exit 3
    }
}

configure() {
    mkdir -p "$FOLDER"/{state,spool.n1,spool.n2,munge,log}
    chmod 755 "$FOLDER"
    for node in n1 n2; do
        grep -qE "[[:space:]]$node\$" /etc/hosts || echo "127.0.0.1 $node" >>/etc/hosts
    done
    if [ ! -s "$FOLDER/munge/key" ]; then
        dd if=/dev/urandom of="$FOLDER/munge/key" bs=1024 count=1 status=none
    fi
    chmod 700 "$FOLDER/munge" && chmod 400 "$FOLDER/munge/key"
    # A job that is put back waits until its credentials have expired, and a second more: two minutes without cred_expire.
    cat >"$FOLDER/slurm.conf" <<CONF
ClusterName=ldm
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$FOLDER/munge/socket,cred_expire=10
CryptoType=crypto/munge
CredType=cred/munge
SlurmctldPort=$PORT
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmctldLogFile=$FOLDER/log/slurmctld
StateSaveLocation=$FOLDER/state
SlurmdPidFile=$FOLDER/slurmd.%n.pid
SlurmdLogFile=$FOLDER/log/slurmd.%n
SlurmdSpoolDir=$FOLDER/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=100000,requeue_delay=0
MinJobAge=300
KillWait=5
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((PORT + 1)) CPUs=$CPUS State=UNKNOWN
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((PORT + 2)) CPUs=$CPUS State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP OverSubscribe=EXCLUSIVE PriorityTier=10 PreemptMode=OFF
CONF
}

start() {
    need
    configure
    export SLURM_CONF="$FOLDER/slurm.conf"
    munged --force --key-file="$FOLDER/munge/key" --socket="$FOLDER/munge/socket" \
        --pid-file="$FOLDER/munge/pid" --log-file="$FOLDER/munge/log" --seed-file="$FOLDER/munge/seed"
    slurmctld -c
    slurmd -N n1
    slurmd -N n2
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null | head -n 1)" = 2 ] && break
        sleep 0.5
    done
    sinfo >&2
    echo "SLURM_CONF=$SLURM_CONF"
}

stop() {
    export SLURM_CONF="$FOLDER/slurm.conf"
    for file in "$FOLDER"/slurmd.n1.pid "$FOLDER"/slurmd.n2.pid "$FOLDER"/slurmctld.pid "$FOLDER"/munge/pid; do
        [ -s "$file" ] && kill "$(cat "$file")" 2>/dev/null || true
    done
    sed -i -E '/^127\.0\.0\.1 n[12]$/d' /etc/hosts 2>/dev/null ||
        { grep -vE '^127\.0\.0\.1 n[12]$' /etc/hosts >"$FOLDER/hosts" && cat "$FOLDER/hosts" >/etc/hosts; }
    sleep 1
    rm -rf "$FOLDER"
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    status) SLURM_CONF="$FOLDER/slurm.conf" sinfo ;;
    *)
        sed -n '2,9s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
