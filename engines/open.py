"""Which of a bundle's engines answers for a target on this machine?"""

from pathlib import Path

from engines.session import DecoderSession, VisionSession
from engines.store.build import known_plugins
from engines.store.cache import built_engines, engines_directory
from engines.store.compatibility import Machine, differences, require_loadable, this_machine
from engines.targets import TargetName
from export.bundle import Bundle, open_bundle
from export.engine_record import EngineRecord
from export.errors import UserError


def open_target(
    path: Path, target: TargetName, *, num_slots: int, capacity: int
) -> tuple[VisionSession, DecoderSession]:
    """Open both sessions of a bundle for a target.

    Args:
        path: the bundle's directory.
        target: ONNX Runtime opens the graphs themselves; TensorRT an engine that was built.
        num_slots: KV slots.
        capacity: tokens that a slot must hold; an engine may have room for more.

    Raises:
        UserError: no engine that this machine can load and that is large enough, and how to build one.
        EngineError: the target refuses what it is given.
    """
    # Each target brings its own libraries.
    if target == "onnxruntime":
        from engines.backends.onnxruntime import session as onnxruntime_session  # noqa: PLC0415

        return onnxruntime_session.open_sessions(path, num_slots=num_slots, capacity=capacity)
    from engines.backends.tensorrt.run import open as tensorrt_opening  # noqa: PLC0415

    record = choose_engine(open_bundle(path), target, num_slots, capacity, this_machine())
    return tensorrt_opening.open_sessions(path, record.key, num_slots=num_slots)


def choose_engine(
    bundle: Bundle, target: TargetName, num_slots: int, capacity: int, machine: Machine
) -> EngineRecord:
    """The engine to load: of those that fit, the one with the least cache for what is asked.

    Raises:
        UserError: none fits; what is wrong with each, and how to build one.
    """
    records = [
        record
        for record in built_engines(bundle.directory).values()
        if isinstance(record, EngineRecord) and record.target == target
    ]
    command = f"qv-export build {bundle.directory} --target {target} --max-batch {num_slots} --max-context {capacity}"
    if not records:
        raise UserError(f"{bundle.directory} has no engine for {target}. Build one: {command}")
    plugins = frozenset(known_plugins())
    unfit = {record.key: _unfit(record, bundle, machine, plugins, num_slots, capacity) for record in records}
    fitting = [record for record in records if not unfit[record.key]]
    if fitting:
        return min(fitting, key=lambda record: (record.limits["max_context"], record.limits["max_batch"]))
    if len(records) == 1:
        require_loadable(records[0], bundle.directory, bundle.manifest.key, machine, plugins)
    reasons = "".join(f"\n- {key}: {'; '.join(found)}" for key, found in unfit.items())
    raise UserError(
        f"No engine for {target} in {bundle.directory} fits:{reasons}\nBuild one that does: {command}"
    )


def _unfit(
    record: EngineRecord,
    bundle: Bundle,
    machine: Machine,
    plugins: frozenset[str],
    num_slots: int,
    capacity: int,
) -> list[str]:
    directory = engines_directory(bundle.directory) / record.key
    asked = {"max_batch": num_slots, "max_context": capacity}
    return [
        *differences(record, bundle.manifest.key, machine, plugins),
        *record.changed_files(directory, read=False),
        *(
            f"its {name} is {record.limits[name]}, asked are {value}"
            for name, value in asked.items()
            if record.limits[name] < value
        ),
    ]
