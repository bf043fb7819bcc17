#!/usr/bin/env bash
# End the daemons that start.sh FOLDER started, by the process numbers that it stored.
folder=$1
scancel --user root --signal KILL --full >/dev/null 2>&1
scancel --user root >/dev/null 2>&1
for name in slurmd slurmctld munged; do
    file=$folder/run/$name.pid
    [ -s "$file" ] || continue
    number=$(cat "$file")
    kill "$number" 2>/dev/null
    for _ in $(seq 50); do
        kill -0 "$number" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$number" 2>/dev/null
    rm -f "$file"
done
exit 0
