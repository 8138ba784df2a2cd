"""Known issues of TensorRT and TensorRT-RTX: each row with its source."""

from packaging.specifiers import SpecifierSet

from engines.backends.known_issues import KnownIssue, always

_BOTH = (
    KnownIssue(
        name="kv-decode-at-16384",
        versions=SpecifierSet(),
        sms=(121,),
        applies=lambda situation: situation.limits["max_context"] >= 16_384,
        what="decode with the native KV cache was silently wrong on SM121 at a cache of 16,384 tokens",
        advice="Build with a --max-context below 16384, and validate on that GPU.",
        source="https://github.com/NVIDIA/TensorRT-Model-Connect/issues/955",
    ),
)

TENSORRT_ISSUES: tuple[KnownIssue, ...] = (
    *_BOTH,
    KnownIssue(
        name="native-attention-with-lengths",
        versions=SpecifierSet(">=11"),
        sms=(86, 120, 121),
        applies=lambda situation: situation.dtype == "bfloat16",
        what="native attention that is told the cache's valid lengths attended beyond them in bfloat16, at any cache "
        "size, silently",
        advice="Validate on that GPU; if it fails, build with --cached-attention plugin.",
        source="https://github.com/NVIDIA/TensorRT-Model-Connect/pull/1048",
    ),
    KnownIssue(
        name="float16-attention-with-lengths",
        versions=SpecifierSet(">=11,<11.3"),
        sms=(),
        applies=lambda situation: situation.dtype == "float16",
        what="TensorRT 11.0 to 11.2 do not build native attention that is told the cache's valid lengths in float16",
        advice="Use a bfloat16 bundle, TensorRT 11.3 or newer, or --cached-attention plugin.",
        source="https://github.com/NVIDIA/TensorRT-Model-Connect/pull/1048",
    ),
    KnownIssue(
        name="horizontal-fusion-at-batch-1",
        versions=SpecifierSet(">=10.13,<10.15"),
        sms=(110,),
        applies=lambda situation: situation.limits["max_batch"] == 1,
        what="TensorRT 10.13 fuses the q, k, v and the gate, up projections wrongly on SM110 when the batch is 1",
        advice="Build with --max-batch 2, or set __LUNOWUD=-peep:fc_h_fusion=off.",
        source="https://github.com/NVIDIA/TensorRT-Edge-LLM/issues/151",
    ),
    KnownIssue(
        name="ahead-of-time-plugins-leak",
        versions=SpecifierSet(">=11.1"),
        sms=(),
        applies=lambda situation: situation.has_plugins,
        # The library of 11.4.0.106 still loads the kernel's module in `QuickAOTPlugin::onShapeChange` and unloads the
        # last one alone, in its destructor.
        what="TensorRT 11.1 to 11.4 load an ahead-of-time plugin's kernel anew at every change of a shape or an "
        "address, and keep the device memory of each",
        advice="Serve few picture sizes, watch the device's memory, and keep the driver's cache of compiled kernels "
        "in a writable CUDA_CACHE_PATH.",
        source="https://github.com/NVIDIA/TensorRT/issues/4849",
    ),
    KnownIssue(
        name="fused-attention-on-sm120",
        versions=SpecifierSet("<=10.16.1"),
        sms=(120,),
        applies=lambda situation: situation.dtype != "float32",
        what="fused attention of a vision transformer was silently wrong in float16 and bfloat16 on SM120",
        advice="Use TensorRT 11, and validate on that GPU.",
        source="https://github.com/NVIDIA/TensorRT/issues/4837",
    ),
)

RTX_ISSUES: tuple[KnownIssue, ...] = (
    *_BOTH,
    KnownIssue(
        name="rtx-on-data-center-gpus",
        versions=SpecifierSet(),
        sms=(90, 100, 103),
        applies=always,
        what="TensorRT-RTX does not serve the data-center GPUs SM90, SM100 and SM103",
        advice="Use --target tensorrt there.",
        source="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html",
    ),
)
