#!/usr/bin/env bash
# A corpus dealt to eight jobs of an array: sbatch slurm.sh BUNDLE 'PICTURES/**/*.jpg' PROMPT OUTPUT
#SBATCH --job-name=qwen2-vl-corpus
#SBATCH --array=0-7
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --requeue
# For GPUs: #SBATCH --gpus=1, and --engine KEY below. A job that is requeued goes on where its rows end.
set -euo pipefail
exec qv-export batch "$1" --input "$2" --prompt "$3" -o "$4" --resume \
    --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT"
