"""Sizes that the GPU kernels of `QvCachedAttention` compute. Free of torch, so that a build can ask first."""

MIN_HEAD_DIM, MAX_HEAD_DIM = 64, 128
MAX_GROUP = 16
"""Query heads of a KV head: the smallest block of rows holds a token's."""
MAX_CAPACITY = 131_072
"""Tokens of the cache."""


def size_problems(num_heads: int, num_key_value_heads: int, head_dim: int, capacity: int) -> list[str]:
    """What is wrong with sizes, as sentences; empty if nothing is."""
    problems = []
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM or head_dim % 8:
        problems.append(f"D must be a multiple of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, not {head_dim}")
    if num_heads % num_key_value_heads or not 1 <= num_heads // num_key_value_heads <= MAX_GROUP:
        problems.append(f"H must be 1 to {MAX_GROUP} times K, not {num_heads} and {num_key_value_heads}")
    if not 1 <= capacity <= MAX_CAPACITY:
        problems.append(f"L must be 1 to {MAX_CAPACITY:,}, not {capacity:,}")
    return problems
