#!/bin/bash
#SBATCH --job-name=digits
#SBATCH --ntasks=5
#SBATCH --cpus-per-task=4
#SBATCH --partition=long
#SBATCH --account=me
#SBATCH '--chdir=/home/me/a b'
#SBATCH --output=/runs/a%%1/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --mem=4G

export TFDP_SEED=7
export PYTHONUNBUFFERED=1
export TFDP_TASKS=chief=1,worker=2,ps=2
export TFDP_RESTART=${SLURM_RESTART_COUNT:-0}
# srun does not inherit it any more since Slurm 22.05.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# exec: the signal comes to the launcher.
exec python3 -m tfdp launch --platform=slurm --workers=2 --chief --ps=2 --job_name=digits --log_dir=/runs/a%1 --signal=TERM@120 -- -m pkg.train
