"""One run that measures on a GPU what no machine without one can: `python -m benchmarks.gpu_proof`."""
