import json
import shutil
from dataclasses import replace
from typing import Any

import pytest

from engines.runtime.scheduler_limits import SchedulerLimits
from engines.serving.limits import RequestLimits
from engines.serving.settings import PARAMETER, ServerSettings
from engines.serving.triton.config import chat_config, config_text, parse_config
from engines.serving.triton.interface import CHAT_INPUTS, CHAT_OUTPUTS, MODEL_NAME
from engines.serving.triton.repository import write_repository
from engines.store.cache import cached_engine
from export.bundle import FileRecord, content_key, open_bundle
from export.checkpoint.config import load_config
from export.contract import vision_contract
from export.errors import UserError
from export.records.engine_record import EngineRecord
from export.records.verdicts import keep_verdict
from tests.support.bundles import shared_bundle
from tests.support.verdicts import judged, verdict_of


@pytest.fixture
def bundle(tmp_path_factory):
    return open_bundle(shared_bundle(tmp_path_factory, {"dtype": "float32"}))


def read_config(directory):
    return parse_config((directory / "config.pbtxt").read_text(encoding="utf-8"))


@pytest.fixture
def bundle_with_engine(bundle, tmp_path):
    """A bundle with files in an engine's place: nothing here loads them."""

    def make(target):
        directory = shutil.copytree(bundle.directory, tmp_path / "with-engine")
        limits = {"max_batch": 4, "max_context": 512, "max_patches": 1024, "max_segments": 8}
        inputs = {
            "bundle": bundle.manifest.key,
            "target": target,
            "sm": "90",
            **{f"limit {name}": str(value) for name, value in limits.items()},
        }
        engine = directory / "engines" / content_key(inputs)
        engine.mkdir(parents=True)
        for graph in ("vision", "decoder"):
            (engine / f"{graph}.engine").write_bytes(graph.encode())
        record = EngineRecord(
            key=engine.name,
            inputs=inputs,
            target=target,
            sms=(90,),
            limits=limits,
            plugins=(),
            driver=None,
            created="2026-01-01T00:00:00+00:00",
            seconds=1.0,
            files=tuple(FileRecord.from_file(engine / f"{graph}.engine") for graph in ("vision", "decoder")),
            facts={},
        )
        (engine / "engine.json").write_text(record.to_json(), encoding="utf-8")
        return open_bundle(directory)

    return make


def key_of(bundle):
    """Of the one engine that `bundle_with_engine` made."""
    [record] = (bundle.directory / "engines").glob("*/engine.json")
    return record.parent.name


def test_the_written_configuration_parses_by_tritons_own_classes_and_declares_the_interface():
    config = parse_config(config_text(chat_config(ServerSettings(num_slots=3))))
    assert (config.name, config.backend, config.max_batch_size) == (MODEL_NAME, "python", 0)
    assert config.model_transaction_policy.decoupled
    assert [(i.name, list(i.dims), i.optional) for i in config.input] == [
        (tensor.name, list(tensor.shape), tensor.is_optional) for tensor in CHAT_INPUTS
    ]
    assert [(o.name, list(o.dims)) for o in config.output] == [
        (tensor.name, list(tensor.shape)) for tensor in CHAT_OUTPUTS
    ]
    settings = ServerSettings.from_json(config.parameters[PARAMETER].string_value)
    assert settings.num_slots == 3


def test_a_configuration_with_an_unknown_field_is_no_configuration():
    with pytest.raises(Exception, match="no field named"):
        parse_config('name: "x"\nmax_batch: 1')


def test_settings_travel_whole():
    settings = ServerSettings(
        num_slots=2,
        capacity=100,
        allowed_hosts=("example.org",),
        scheduler=SchedulerLimits(max_queue=3),
        requests=RequestLimits(max_pictures=1),
    )
    assert ServerSettings.from_json(settings.to_json()) == settings
    assert settings.max_requests == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "must hold a JSON object"),
        ('{"num_slot": 1}', "unknown keys num_slot; known are"),
        ('{"num_slots": 0}', "num_slots must be"),
        ('{"num_slots": true}', "num_slots must be"),
        ('{"requests": {"max_pictures": 0}}', "max_pictures must be"),
        ('{"requests": {"surprise": 1}}', "requests: unknown keys surprise; known are"),
        ('{"requests": []}', r"requests must be an object, found \[\]"),
        ('{"scheduler": {"max_queue": 0}}', "max_queue must be"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text, says):
    with pytest.raises(UserError, match=says):
        ServerSettings.from_json(text)


def test_a_bundle_without_a_proof_is_refused_unless_that_is_allowed(bundle, tmp_path):
    shortfalls: list[tuple[dict[str, Any], str]] = [
        ({"passed": False, "num_failed": 2}, "failed at standard, 2 of 353 gates"),
        ({"level": "quick"}, "passed at quick alone"),
        ({"gate_kind": "looser", "multiple": 1e12}, r"grant more than the defaults \(multiple 1e\+12\)"),
        ({"is_narrow": True}, "smaller shapes than usual"),
        ({"bundle_key": "0" * 16}, "of bundle 0000000000000000"),
        ({"digests": {}}, "other bytes of model.safetensors"),
        ({"engine_key": "torch-float32", "target": "torch"}, "another engine: torch"),
    ]
    for number, (changes, says) in enumerate(shortfalls):
        bundle_then = judged(bundle, tmp_path / f"bundle{number}", **changes)
        output = tmp_path / f"repository{number}"
        with pytest.raises(UserError, match=says) as refusal:
            write_repository(bundle_then, output, ServerSettings())
        command = f"qv-export validate {bundle_then.directory} --target onnxruntime --report REPORT"
        assert command in str(refusal.value)
        assert "--allow-unvalidated" in str(refusal.value)
        assert not output.exists()
        deployment = write_repository(bundle_then, output, ServerSettings(), allow_unvalidated=True)
        assert not deployment.is_validated
        assert "not proven" in (output / "README.md").read_text(encoding="utf-8")
        record = json.loads((output / "deployment.json").read_text(encoding="utf-8"))
        assert (record["is_validated"], record["verdict"]) == (False, None)


def test_a_failure_after_a_proof_takes_it_back_and_one_by_stricter_gates_does_not(bundle, tmp_path):
    later: dict[str, Any] = {
        "created": "2026-11-02T00:00:00+00:00",
        "passed": False,
        "num_failed": 1,
        "level": "quick",
    }
    proven = judged(bundle, tmp_path / "proven")
    keep_verdict(proven.directory, verdict_of(proven, **later, gate_kind="stricter"))
    assert write_repository(proven, tmp_path / "r", ServerSettings()).is_validated
    keep_verdict(proven.directory, verdict_of(proven, **later))
    with pytest.raises(UserError, match="failed at quick"):
        write_repository(proven, tmp_path / "r2", ServerSettings())


def test_a_flipped_bit_in_the_weights_is_refused_whatever_is_allowed(bundle, tmp_path):
    proven = judged(bundle, tmp_path / "proven")
    [weights] = proven.manifest.weights
    path = proven.directory / weights.name
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.unlink()  # a hard link to the shared bundle's
    path.write_bytes(content)
    for is_allowed in (False, True):
        with pytest.raises(UserError, match=f"changed since the export: {weights.name}"):
            write_repository(
                open_bundle(proven.directory), tmp_path / "r", ServerSettings(), allow_unvalidated=is_allowed
            )


def test_a_validated_bundle_is_placed_by_links_beside_its_runtime(bundle, tmp_path):
    proven = judged(bundle, tmp_path / "proven")
    assert write_repository(proven, tmp_path / "repository", ServerSettings()).is_validated
    version = tmp_path / "repository" / MODEL_NAME / "1"
    assert open_bundle(version / "bundle").manifest.key == bundle.manifest.key
    [weights] = bundle.manifest.weights
    assert (version / "bundle" / weights.name).samefile(bundle.directory / weights.name)
    assert (version / "runtime" / "engines" / "runtime" / "scheduler.py").is_file()
    assert not list(version.rglob("*.pyc"))
    sources = [path.read_text(encoding="utf-8") for path in (version / "runtime" / "engines").rglob("*.py")]
    assert not any("\nimport torch" in source for source in sources)


def test_an_engine_is_served_on_the_gpu_and_travels_alone(bundle_with_engine, tmp_path):
    bundle = bundle_with_engine("tensorrt")
    (bundle.directory / "engines" / "other").mkdir()
    settings = ServerSettings(num_slots=4, capacity=512, engine=key_of(bundle))
    keep_verdict(bundle.directory, verdict_of(bundle, key_of(bundle)))
    assert write_repository(bundle, tmp_path / "repository", settings).is_validated
    config = read_config(tmp_path / "repository" / MODEL_NAME)
    [group] = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 1, [0])
    assert ServerSettings.from_json(config.parameters[PARAMETER].string_value) == settings
    served = tmp_path / "repository" / MODEL_NAME / "1" / "bundle"
    assert [path.name for path in (served / "engines").iterdir()] == [key_of(bundle)]
    assert cached_engine(served, key_of(bundle)) == cached_engine(bundle.directory, key_of(bundle))


def test_a_verdict_on_another_engine_is_none_on_this_one(bundle_with_engine, tmp_path):
    bundle = bundle_with_engine("tensorrt")
    keep_verdict(bundle.directory, verdict_of(bundle))
    with pytest.raises(
        UserError, match=rf"(?s)the engine {key_of(bundle)} \(tensorrt\).*another engine: onnxruntime"
    ) as refusal:
        write_repository(
            bundle, tmp_path / "repository", ServerSettings(num_slots=4, capacity=512, engine=key_of(bundle))
        )
    assert f"--engine {key_of(bundle)} --report REPORT" in str(refusal.value)


def test_a_verdict_counts_for_the_engines_bytes_and_not_for_its_key_alone(bundle_with_engine, tmp_path):
    bundle = bundle_with_engine("tensorrt")
    keep_verdict(
        bundle.directory,
        verdict_of(
            bundle,
            key_of(bundle),
            digests={
                **verdict_of(bundle, key_of(bundle)).digests,
                f"engines/{key_of(bundle)}/vision.engine": "0",
            },
        ),
    )
    with pytest.raises(UserError, match=rf"other bytes of engines/{key_of(bundle)}/vision\.engine"):
        write_repository(
            bundle, tmp_path / "r", ServerSettings(num_slots=4, capacity=512, engine=key_of(bundle))
        )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": "nothing"}, "no whole engine nothing"),
        ({"num_slots": 5}, "--slots 5 is more than its max_batch 4"),
        ({"capacity": 513}, "--max-context 513 is more than its max_context 512"),
    ],
)
def test_what_an_engine_cannot_serve_is_refused(bundle_with_engine, tmp_path, changes, says):
    bundle = bundle_with_engine("tensorrt")
    settings = replace(ServerSettings(num_slots=4, capacity=512, engine=key_of(bundle)), **changes)
    with pytest.raises(UserError, match=says):
        write_repository(bundle, tmp_path / "r", settings, allow_unvalidated=True)
    assert not (tmp_path / "r").exists()


def test_a_device_that_nothing_there_follows_is_refused(bundle, tmp_path):
    with pytest.raises(UserError, match="--device cuda:1: in Triton") as caught:
        write_repository(bundle, tmp_path / "r", ServerSettings(device="cuda:1"), allow_unvalidated=True)
    assert "CUDA_VISIBLE_DEVICES" in str(caught.value.remedy)
    assert not (tmp_path / "r").exists()


def test_parts_of_an_engine_are_a_plan_for_tritons_own_backend(bundle_with_engine, tmp_path):
    bundle = bundle_with_engine("tensorrt")
    settings = ServerSettings(num_slots=4, capacity=512, engine=key_of(bundle))
    write_repository(bundle, tmp_path / "r", settings, has_parts=True, allow_unvalidated=True)
    config = read_config(tmp_path / "r" / "vision_encoder")
    assert config.backend == "tensorrt"
    contract = vision_contract(load_config(bundle.directory), bundle.manifest.dtype)
    for declared, specs in ((config.input, contract.inputs), (config.output, contract.outputs)):
        assert [tensor.name for tensor in declared] == [spec.name for spec in specs]
        assert [len(tensor.dims) for tensor in declared] == [len(spec.shape) for spec in specs]
    assert list(config.input[0].dims) == [-1, contract.inputs[0].shape[1]]
    plan = tmp_path / "r" / "vision_encoder" / "1" / "model.plan"
    assert plan.samefile(bundle.directory / "engines" / key_of(bundle) / "vision.engine")
    preprocess = tmp_path / "r" / "preprocess"
    assert read_config(preprocess).backend == "python"
    assert not [path for path in preprocess.rglob("*") if path.suffix in {".onnx", ".safetensors"}]


def test_tritons_backend_loads_no_engine_of_tensorrt_rtx(bundle_with_engine, tmp_path):
    bundle = bundle_with_engine("tensorrt-rtx")
    settings = ServerSettings(num_slots=4, capacity=512, engine=key_of(bundle))
    write_repository(bundle, tmp_path / "r", settings, allow_unvalidated=True)
    with pytest.raises(UserError, match="loads no engine of tensorrt-rtx"):
        write_repository(bundle, tmp_path / "r", settings, has_parts=True, allow_unvalidated=True)


def test_a_repository_is_replaced_and_anything_else_is_not(bundle, tmp_path):
    write_repository(bundle, tmp_path / "a", ServerSettings(num_slots=1), allow_unvalidated=True)
    write_repository(bundle, tmp_path / "a", ServerSettings(num_slots=2), allow_unvalidated=True)
    record = json.loads((tmp_path / "a" / "deployment.json").read_text(encoding="utf-8"))
    assert record["settings"]["num_slots"] == 2
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="will not be replaced"):
        write_repository(bundle, tmp_path / "b", ServerSettings(), allow_unvalidated=True)
    assert (tmp_path / "b" / "mine.txt").read_text() == "mine"
