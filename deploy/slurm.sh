#!/usr/bin/env bash
# A search on a Slurm cluster: Ray's head and workers on the nodes of one job, the search beside the
# head. From the top of this repository, in the environment that `make` or pip installed Augury into,
# on a file system that all nodes see:
#
#   sbatch deploy/slurm.sh configs/cifar10_resnet20.yaml /shared/runs/w2
#   sbatch --nodes=8 --time=24:00:00 deploy/slurm.sh CONFIG RUN --set search.trials=400
#
# The second argument is the run's folder. Before the time is over, running epochs end and the job goes
# back into the queue; it then resumes, since the folder holds a run. `scancel JOB` ends it for good.

#SBATCH --job-name=augury
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=augury-%j.log
# SIGTERM for this script alone, so long before the end: more than an epoch takes.
#SBATCH --signal=B:TERM@300

set -euo pipefail
config=${1:?"usage: sbatch deploy/slurm.sh CONFIG RUN [--set KEY.PATH=VALUE ...]"}
run=${2:?"the folder of the run, on a file system that all nodes see"}
shift 2

# Everything of this job has its number: nodes may be shared with other jobs, and /tmp with other users.
job=${SLURM_JOB_ID:?"start it with sbatch"}
port=$((20000 + job % 2000 * 5)) # five ports of its own, below those that Linux gives away
ray_folder=/tmp/augury-$job
token=$HOME/.augury-$job.token

# Without the token, whoever reaches a node could run code as you. It lies in a file that is yours alone.
umask 077
python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
trap 'rm -f "$token"' EXIT

node=$(hostname)                 # a batch script runs on the first node of its job: the head
address=$(hostname --all-ip-addresses | cut --delimiter=' ' --fields=1)
resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
step=(srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0)

# --block keeps Ray in the step, so that Slurm ends it with the job. The dashboard stays on the node:
# ssh -L 8265:127.0.0.1:DASHBOARD NODE, both in the log.
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$node" \
    ray start --head --block --node-ip-address="$address" --port="$port" \
    --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) \
    --dashboard-agent-listen-port=$((port + 2)) --metrics-export-port=$((port + 3)) \
    --ray-client-server-port=$((port + 4)) --temp-dir="$ray_folder" "${resources[@]}" &
head=$!

workers=$((SLURM_JOB_NUM_NODES - 1))
if ((workers > 0)); then
    # shellcheck disable=SC2016  # expanded on the workers
    "${step[@]}" --nodes=$workers --ntasks=$workers --exclude="$node" \
        bash -c 'until ray start --address="$0" --block "$@"; do sleep 2; done' \
        "$address:$port" --dashboard-agent-listen-port=$((port + 2)) \
        --metrics-export-port=$((port + 3)) "${resources[@]}" &
fi

# The head answers when it is there; every worker that is not there by then joins later.
export RAY_ADDRESS=$address:$port # which cluster.address=auto means
until ray status > /dev/null 2>&1; do
    kill -0 $head 2> /dev/null || { echo "Ray's head did not start" >&2; exit 1; }
    sleep 2
done
echo "head $node, Ray $address:$port, dashboard port $((port + 1)), metrics port $((port + 3))"

# A stopped search ends with 130. Slurm's signal wakes this script, which hands it on and waits.
if [[ -e $run/run.json ]]; then
    echo "going on with $run by its own config.yaml: CONFIG and --set were for its beginning"
    augury resume "$run" &
else
    augury search "$config" --run "$run" --set cluster.address=auto "$@" &
fi
search=$!
stopping=
trap 'stopping=1; kill -TERM $search' TERM
code=0
wait $search || code=$?
[[ -z $stopping ]] || { code=0; wait $search || code=$?; }
if [[ -n $stopping && $code -eq 130 ]]; then
    scontrol requeue "$job"
fi
exit $code
