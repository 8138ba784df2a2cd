"""Answers a corpus on a Ray cluster, in a pipeline of one's own: `ray_corpus.py BUNDLE PICTURES OUTPUT PROMPT`."""

import sys
from pathlib import Path

import ray

from engines.batch.worker import BatchWorker, ModelChoice

bundle, pictures, output, prompt = sys.argv[1:]
ray.data.read_binary_files(pictures, include_paths=True).map_batches(
    BatchWorker,
    fn_constructor_args=(ModelChoice(Path(bundle), num_threads=1), prompt),
    batch_size=16,
    num_cpus=0.25,  # of those that feed it, one must stay free; on GPUs num_gpus=1 as well
    compute=ray.data.ActorPoolStrategy(size=2),
).write_parquet(output)
