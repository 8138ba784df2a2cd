"""Which combinations of TensorRT version, GPU and use are known to go wrong? One table, each row with its source."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from engines.targets import TARGETS, TargetName
from export.engine_record import EngineRecord


@dataclass(frozen=True)
class Situation:
    """What is about to be built or loaded."""

    target: TargetName
    version: str
    """Of the target's library."""
    sms: tuple[int, ...]
    """Compute capability x 10."""
    limits: Mapping[str, int]
    dtype: str
    has_plugins: bool


@dataclass(frozen=True)
class KnownIssue:
    """A combination that somebody found wrong: a reason to validate on that very machine, not a proof against it."""

    name: str
    targets: tuple[TargetName, ...]
    versions: SpecifierSet
    """Of the target's library; empty: all."""
    sms: tuple[int, ...]
    """Empty: all."""
    applies: Callable[[Situation], bool]
    what: str
    advice: str
    source: str

    def matches(self, situation: Situation) -> bool:
        return (
            situation.target in self.targets
            and self.versions.contains(situation.version, prereleases=True)
            and (not self.sms or bool(set(self.sms) & set(situation.sms)))
            and self.applies(situation)
        )

    def sentence(self) -> str:
        return f"known issue {self.name}: {self.what}. {self.advice} ({self.source})"


def _always(_situation: Situation) -> bool:
    return True


KNOWN_ISSUES: tuple[KnownIssue, ...] = (
    KnownIssue(
        name="horizontal-fusion-at-batch-1",
        targets=("tensorrt",),
        versions=SpecifierSet(">=10.13,<10.15"),
        sms=(110,),
        applies=lambda situation: situation.limits["max_batch"] == 1,
        what="TensorRT 10.13 fuses the q, k, v and the gate, up projections wrongly on SM110 when the batch is 1",
        advice="Build with --max-batch 2, or set __LUNOWUD=-peep:fc_h_fusion=off.",
        source="https://github.com/NVIDIA/TensorRT-Edge-LLM/issues/151",
    ),
    KnownIssue(
        name="ahead-of-time-plugins-leak",
        targets=("tensorrt",),
        versions=SpecifierSet(">=11.1,<11.3"),
        sms=(),
        applies=lambda situation: situation.has_plugins,
        what="TensorRT 11.1 and 11.2 keep device memory of an ahead-of-time plugin at every change of a shape",
        advice="Use TensorRT 11.3 or newer and watch the memory there, or few shapes.",
        source="https://github.com/NVIDIA/TensorRT/issues/4849",
    ),
    KnownIssue(
        name="kv-decode-at-16384",
        targets=("tensorrt", "tensorrt-rtx"),
        versions=SpecifierSet(),
        sms=(121,),
        applies=lambda situation: situation.limits["max_context"] >= 16_384,
        what="decode with the native KV cache was silently wrong on SM121 at a cache of 16,384 tokens",
        advice="Build with a --max-context below 16384, and validate on that GPU.",
        source="https://github.com/NVIDIA/TensorRT-Model-Connect/issues/955",
    ),
    KnownIssue(
        name="fused-attention-on-sm120",
        targets=("tensorrt",),
        versions=SpecifierSet("<=10.16.1"),
        sms=(120,),
        applies=lambda situation: situation.dtype != "float32",
        what="fused attention of a vision transformer was silently wrong in float16 and bfloat16 on SM120",
        advice="Use TensorRT 11, and validate on that GPU.",
        source="https://github.com/NVIDIA/TensorRT/issues/4837",
    ),
    KnownIssue(
        name="rtx-on-data-center-gpus",
        targets=("tensorrt-rtx",),
        versions=SpecifierSet(),
        sms=(90, 100, 103),
        applies=_always,
        what="TensorRT-RTX does not serve the data-center GPUs SM90, SM100 and SM103",
        advice="Use --target tensorrt there.",
        source="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html",
    ),
)


def situation_of(record: EngineRecord, dtype: str) -> Situation:
    """An engine that is about to be loaded, in the version that it was built with, which must be the one here."""
    versions = [record.inputs[name] for name in TARGETS[record.target].distributions if name in record.inputs]
    return Situation(
        target=record.target,
        version=next(iter(versions), "0"),
        sms=record.sms,
        limits=record.limits,
        dtype=dtype,
        has_plugins=bool(record.plugins),
    )


def known_issues(situation: Situation) -> list[KnownIssue]:
    """The rows of the table that speak of this situation."""
    return [issue for issue in KNOWN_ISSUES if issue.matches(situation)]
