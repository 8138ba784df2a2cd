"""On a GPU: the PTX that goes into engines, launched through the driver, and Triton's own launch, against float64."""

import itertools

import pytest
import torch

from tests.plugins.interpreted import UNIT_ROUNDOFF

pytestmark = pytest.mark.gpu

DTYPES = ["float32", "float16", "bfloat16"]
ROTARY_TOLERANCE = {dtype: (8 if dtype == "float32" else 1.01) * UNIT_ROUNDOFF[dtype] for dtype in DTYPES}
# float32 products are six of three bfloat16 parts: 2^-22 or so of the largest score, then an exponential.
ATTENTION_TOLERANCE = {dtype: (64 if dtype == "float32" else 2) * UNIT_ROUNDOFF[dtype] for dtype in DTYPES}
SEGMENTS = [[4, 129, 1, 64, 67], [1], [2000], [4, 16, 20] * 20, [16_384]]
ATTENTION_CASES = [
    *itertools.product(SEGMENTS, [80], DTYPES),
    *itertools.product([[5, 66]], [32, 40, 48, 64, 72, 96, 112, 128], DTYPES),
]


@pytest.fixture(scope="module")
def machine():
    from plugins.tensorrt import cuda_driver

    torch.zeros(1, device="cuda")  # makes the context that the driver's calls use
    return cuda_driver.compute_capability(), cuda_driver.driver_cuda_version()


def rotary_truth(x, positions, frequencies, axis_of):
    angles = (positions[axis_of.long()].T.float() * frequencies).double()[:, None]
    first, second = x.double().chunk(2, -1)
    rotated = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
    return torch.cat(rotated, -1), torch.hypot(first, second).repeat(1, 1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(12, 2, 128), (28, 4, 128), (64, 8, 128), (16, 16, 80)]
)
@pytest.mark.parametrize("tokens", [1, 33, 5000])
def test_rotary_ptx_and_triton_rotate_like_float64(machine, tokens, heads, kv_heads, head_dim, dtype):
    from plugins.rotary import kernel, reference
    from plugins.tensorrt import launch_ptx

    q = torch.randn(tokens, heads, head_dim, device="cuda").to(getattr(torch, dtype))
    k = torch.randn(tokens, kv_heads, head_dim, device="cuda").to(q.dtype)
    positions = torch.randint(0, 120_001, (3, tokens), device="cuda", dtype=torch.int32)
    frequencies = reference.mrope_frequencies(head_dim, 1e6).cuda()
    axis_of = torch.randint(0, 3, (head_dim // 2,), device="cuda", dtype=torch.int32)
    inputs = [q, k, positions, frequencies, axis_of]
    results = [torch.ops.qv.rotary(*inputs)]
    for tile in kernel.TILES:
        launch = launch_ptx.rotary_launch(inputs, tile, *machine)
        results.append(launch.run(launch.load()))
    for result in results:
        for x, rotated in zip((q, k), result, strict=True):
            truth, radius = rotary_truth(x, positions, frequencies, axis_of)
            assert ((rotated.double() - truth).abs() / radius).max() <= ROTARY_TOLERANCE[dtype]


@pytest.mark.parametrize(("lengths", "head_dim", "dtype"), ATTENTION_CASES)
def test_patch_attention_ptx_and_triton_attend_like_float64(machine, lengths, head_dim, dtype):
    from plugins.patch_attention import kernel
    from plugins.tensorrt import launch_ptx

    offsets = [0, *itertools.accumulate(lengths)]
    q, k, v = (
        torch.randn(offsets[-1], 2, head_dim, device="cuda").to(getattr(torch, dtype)) for _ in range(3)
    )
    cu_seqlens = torch.tensor(offsets, device="cuda", dtype=torch.int32)
    segment_range = torch.arange(max(lengths), device="cuda", dtype=torch.int32)
    inputs = [q, k, v, cu_seqlens, segment_range]
    results = {"Triton": torch.ops.qv.patch_attention(*inputs)}
    for tile in kernel.tiles(head_dim, q.element_size()):
        launch = launch_ptx.patch_attention_launch(inputs, tile, *machine)
        (results[str(tile)],) = launch.run(launch.load())
    for start, end in itertools.pairwise(offsets):
        q64, k64, v64 = (x[start:end].double().transpose(0, 1) for x in (q, k, v))
        truth = (torch.softmax(q64 @ k64.mT * head_dim**-0.5, -1) @ v64).transpose(0, 1)
        for name, result in results.items():
            error = (result[start:end].double() - truth).abs().max() / v64.abs().max()
            assert error <= ATTENTION_TOLERANCE[dtype], name


CACHE_LENGTHS = [([1], [1]), ([40_000, 7, 4096], [1, 1, 1]), ([700, 64, 33], [300, 64, 1])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(12, 2, 128), (28, 4, 128), (8, 8, 64), (8, 1, 80)]
)
@pytest.mark.parametrize(("lengths", "queries"), CACHE_LENGTHS)
def test_cached_attention_ptx_and_triton_attend_like_float64(
    machine, lengths, queries, heads, kv_heads, head_dim, dtype
):
    from plugins.cached_attention import kernel
    from plugins.tensorrt import launch_ptx

    capacity, num_queries = max(lengths) + max(queries), max(queries)
    q = torch.randn(len(lengths), num_queries, heads, head_dim, device="cuda").to(getattr(torch, dtype))
    key, value = torch.full((2, len(lengths), kv_heads, capacity, head_dim), torch.nan, device="cuda").to(
        q.dtype
    )
    for i, length in enumerate(lengths):
        key[i, :, :length].normal_()
        value[i, :, :length].normal_()
    kv_lengths = torch.tensor(lengths, device="cuda", dtype=torch.int32)
    write_index = kv_lengths - torch.tensor(queries, device="cuda", dtype=torch.int32)
    inputs = [q, key, value, write_index, kv_lengths]
    results = {"Triton": torch.ops.qv.attend_to_cache(*inputs)}
    for tile in kernel.tiles(q.element_size()):
        first, second = launch_ptx.cached_attention_launches(inputs, tile, *machine)
        first.run(first.load())
        (results[str(tile)],) = second.run(second.load())
    for i, (length, valid) in enumerate(zip(lengths, queries, strict=True)):
        k64, v64 = (x[i, :, :length].double().repeat_interleave(heads // kv_heads, 0) for x in (key, value))
        scores = q[i, :valid].double().transpose(0, 1) @ k64.mT * head_dim**-0.5
        last = torch.arange(length - valid, length, device="cuda")
        hidden = torch.arange(length, device="cuda") > last[:, None]
        truth = (torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v64).transpose(0, 1)
        for name, result in results.items():
            error = (result[i, :valid].double() - truth).abs().max() / v64.abs().max()
            assert error <= ATTENTION_TOLERANCE[dtype], name


def test_the_model_runs_the_kernels_on_a_gpu_and_the_reference_for_gradients():
    from plugins import dispatch

    x = torch.randn(4, 2, 80, device="cuda")
    assert dispatch.runs_kernel(x)
    assert not dispatch.runs_kernel(x.requires_grad_())
    with torch.no_grad():
        assert dispatch.runs_kernel(x)
    assert not dispatch.runs_kernel(x.cpu())
