#!/usr/bin/env bash
# Bring up a one-node Slurm with two fake GPUs on a bare Debian 12, as root, without
# systemd: start.sh FOLDER. Its state is in FOLDER; stop.sh FOLDER ends it.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
host=$(hostname -s)
n_gpus=2

missing=$(for package in slurmctld slurmd slurm-client munge procps; do
    dpkg -s "$package" >/dev/null 2>&1 || echo "$package"
done)
if [ -n "$missing" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086  # one word a package
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        $missing >/dev/null
fi
getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts
mkdir -p "$folder"/{state,spool,log,run}

# Munge signs every message. A daemon that already runs is used.
mkdir -p /run/munge /var/lib/munge /var/log/munge
[ -s /etc/munge/munge.key ] ||
    head -c 1024 /dev/urandom >/etc/munge/munge.key
chown -R munge: /run/munge /var/lib/munge /var/log/munge /etc/munge
chmod 0755 /run/munge
chmod 0400 /etc/munge/munge.key
if ! munge -n </dev/null 2>/dev/null | unmunge >/dev/null 2>&1; then
    runuser -u munge -- /usr/sbin/munged --num-threads=2
    for _ in $(seq 50); do [ -s /run/munge/munged.pid ] && break; sleep 0.1; done
    cp /run/munge/munged.pid "$folder/run/munged.pid"
fi

# The partitions are those of profiles/slurm. `gpu` preempts jobs of `scavenge`; jobs of
# `short` have one minute. Ended jobs are remembered for a day because the tests read
# them. The node claims four CPUs, whatever it has, so that no job waits for one.
cat >/etc/slurm/slurm.conf <<CONF
ClusterName=toy
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=86400
SlurmctldTimeout=30
SlurmdTimeout=300
GresTypes=gpu
AccountingStorageType=accounting_storage/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000000 Gres=gpu:$n_gpus State=UNKNOWN
PartitionName=cpu Nodes=$host Default=YES MaxTime=1-00:00:00 PriorityTier=2 PreemptMode=OFF State=UP
PartitionName=gpu Nodes=$host MaxTime=1-00:00:00 PriorityTier=2 PreemptMode=OFF State=UP
PartitionName=scavenge Nodes=$host MaxTime=1-00:00:00 PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=short Nodes=$host MaxTime=1 PriorityTier=2 PreemptMode=OFF State=UP
CONF
# A GPU must be a character device; these are copies of /dev/null.
echo "AutoDetect=off" >/etc/slurm/gres.conf
for ((gpu = 0; gpu < n_gpus; gpu++)); do
    device=$folder/run/fakegpu$gpu
    [ -c "$device" ] || mknod -m 666 "$device" c 1 3
    echo "NodeName=$host Name=gpu File=$device" >>/etc/slurm/gres.conf
done

alive() { [ -s "$folder/run/$1.pid" ] && kill -0 "$(cat "$folder/run/$1.pid")" 2>/dev/null; }
alive slurmctld || /usr/sbin/slurmctld
alive slurmd || /usr/sbin/slurmd
for _ in $(seq 100); do
    [ "$(sinfo --noheader --partition cpu --format %t 2>/dev/null)" = idle ] && exit 0
    sleep 0.2
done
echo "slurm did not come up:" >&2
tail -n 20 "$folder"/log/*.log >&2
exit 1
