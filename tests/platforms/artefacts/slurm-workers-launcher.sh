#!/bin/bash
#SBATCH --job-name=digits
#SBATCH --ntasks=4
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --time=1:00:00
#SBATCH '--chdir=/home/me/a b'
#SBATCH --output=/runs/a%%1/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120

export TFDP_SEED=7
export PYTHONUNBUFFERED=1
export TFDP_TASKS=worker=4
export TFDP_RESTART=${SLURM_RESTART_COUNT:-0}
# srun does not inherit it any more since Slurm 22.05.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# exec: the signal comes to the launcher.
exec python3 -m tfdp launch --platform=slurm --workers=4 --job_name=digits --log_dir=/runs/a%1 --signal=TERM@120 --max_restarts=2 -- train.py --lr=0.1
