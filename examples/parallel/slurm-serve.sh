#!/usr/bin/env bash
#SBATCH --job-name=qwen2-vl-ranks
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# A bundle in two stages over two machines of a Slurm cluster, which both see its directory:
#
#     qv-export export CHECKPOINT -o /shared/bundle --pipeline-stages 2
#     BUNDLE=/shared/bundle sbatch slurm-serve.sh
#
# Slurm runs this script on the job's first machine. `mpirun` learns the others from Slurm, and starts a rank on each.
set -euo pipefail
exec qv-export serve "$BUNDLE" --host "$(hostname)" --api-key-file "${API_KEYS:?a file with a key a line}" --ranks "$SLURM_NTASKS"
