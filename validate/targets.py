"""What `validate --target` names: a backend's engine or the reference itself, and the way to look inside it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engines.backends import BACKENDS
from engines.open import Choice, choose_engine, open_chosen
from engines.session import Engine, ProbeSession
from engines.store.compatibility import this_machine
from export.bundle import Bundle
from export.errors import UserError
from export.records.engine_record import EngineRecord
from export.weights.names import QUANTIZED_FILE
from validate.cases.builtin import Profile
from validate.execution import EngineUnderTest
from validate.reference.targets import REFERENCE_TARGETS, ReferenceTarget


@dataclass(frozen=True)
class TargetUnderTest:
    """An engine to validate, and the way to look inside it."""

    engine: EngineUnderTest
    probes: ProbeSession | None
    """None: it cannot show what it computes on the way."""
    key: str
    """What its verdict belongs to: of the engine, or of the graphs as the backend opens them."""
    chosen: Choice | None
    """None for the reference itself."""
    is_narrow: bool
    """Smaller shapes were asked for than the engine has, or than are usual for graphs."""


def open_target(
    name: str, bundle: Bundle, profile: Profile, dtype: str | None = None, device: str | None = None
) -> TargetUnderTest:
    """A target's engine for a bundle, not yet in memory.

    Args:
        name: of a backend, a key of an engine, or a target of the reference.
        bundle: whose graphs, engines or weights it runs.
        profile: the shapes to ask of it; a built engine narrows them to its own limits.
        dtype: what to compute in; None: what the target takes for this bundle.
        device: which GPU, such as `cuda:1`, where one computes; None: the first.

    Raises:
        UserError: the target cannot run here, or cannot compute in `dtype`.
    """
    if name in REFERENCE_TARGETS:
        if device is not None:
            raise UserError(
                f"--device {device} is for engines: target {name} is the reference. Leave it out."
            )
        return _reference(REFERENCE_TARGETS[name], bundle, profile, dtype)
    if name in BACKENDS:
        _require_dtype(BACKENDS[name].name, dtype, *_dtypes(name, bundle))
    chosen = choose_engine(bundle, name, num_slots=1, capacity=1, machine=this_machine())
    return _backend(chosen, bundle, profile, dtype, device)


def _backend(
    chosen: Choice, bundle: Bundle, profile: Profile, dtype: str | None, device: str | None
) -> TargetUnderTest:
    backend, record = chosen.backend, chosen.record
    if missing := backend.missing():
        raise UserError(missing)
    possible, reason = _dtypes(backend.name, bundle)
    _require_dtype(backend.name, dtype, possible, reason)

    def open_engine(num_slots: int, capacity: int) -> Engine:
        return open_chosen(bundle, chosen, num_slots=num_slots, capacity=capacity, device=device)

    narrowed, usual = profile, Profile()
    if record is not None:
        narrowed, usual = profile_of_engine(record, profile), profile_of_engine(record, usual)
    rounds_inputs = backend.rounds_inputs_of_few_bits and _is_quantized(bundle)
    engine = EngineUnderTest(backend.name, dtype or possible[0], narrowed, open_engine, rounds_inputs)
    is_narrow = narrowed.is_narrower_than(usual)
    return TargetUnderTest(
        engine, backend.probe(bundle, record, device=device), chosen.key, chosen, is_narrow
    )


def _dtypes(name: str, bundle: Bundle) -> tuple[tuple[str, ...], str]:
    backend = BACKENDS[name]
    return backend.compute_dtypes(bundle.manifest.dtype), backend.dtype_reason


def _is_quantized(bundle: Bundle) -> bool:
    return any(record.name == QUANTIZED_FILE for record in bundle.manifest.weights)


def _reference(
    target: ReferenceTarget, bundle: Bundle, profile: Profile, dtype: str | None
) -> TargetUnderTest:
    """The reference itself, weights in `dtype`: shows what a sound engine of that dtype does."""
    if missing := target.missing():
        raise UserError(missing)
    _require_dtype(target.name, dtype, target.dtypes, "the reference computes in these")
    chosen = dtype or bundle.manifest.dtype

    def open_engine(num_slots: int, capacity: int) -> Engine:
        return target.open(bundle, chosen, num_slots, capacity)

    engine = EngineUnderTest(target.name, chosen, profile, open_engine)
    return TargetUnderTest(
        engine,
        target.probe(bundle, chosen),
        f"{target.name}-{chosen}",
        None,
        profile.is_narrower_than(Profile()),
    )


def profile_of_engine(record: EngineRecord, asked: Profile) -> Profile:
    """What was asked, within what the engine was built for: beyond that a case is outside, not wrong."""
    limits = record.limits
    return replace(
        asked,
        max_context_tokens=limits["max_context"],  # the cache's size cannot be chosen any more
        max_patches=min(asked.max_patches, limits["max_patches"]),
        # One KV slot stays free: the one that slot reuse is compared with.
        max_batch=max(1, min(asked.max_batch, limits["max_batch"] - 1)),
        max_prompt_tokens=limits["max_prompt_tokens"],
        max_segments=limits["max_segments"],
    )


def _require_dtype(target: str, asked: str | None, possible: Sequence[str], reason: str) -> None:
    if asked is not None and asked not in possible:
        raise UserError(
            f"--target {target} cannot compute in {asked}: {reason}. Possible here: {', '.join(possible)}."
        )
