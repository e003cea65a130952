#!/bin/bash
# A bench as an array of eight tasks, each of which does its own part: sbatch examples/slurm.sh
# Give the same command again after a failure or a time limit: finished runs are kept.
#SBATCH --job-name=rmadapter
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --output=bench-%A_%a.log
set -euo pipefail

# Both on a file system that every node sees. The first task may need the internet for the backbone; fetch it before
# with `rmadapter backbones get`, where nodes have none.
: "${DATA:?the folder of data sets}" "${RESULTS:?the folder of results}"

# sbatch puts SLURM_ARRAY_TASK_ID and its range into the environment, which --shard auto reads.
srun rmadapter bench base-to-novel --datasets paper --root "$DATA" --out "$RESULTS" \
  --methods zero-shot,mma,rmadapter --backbone ViT-B-16/openai --jobs-per-gpu 2 --shard auto

# When all have ended: rmadapter report "$RESULTS" --out report
