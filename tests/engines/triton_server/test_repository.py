import json
from dataclasses import replace

import pytest

pytest.importorskip("tritonclient", reason="needs Triton's protobuf classes: pip install 'qv-export[triton]'")

from engines.runtime.scheduler_limits import SchedulerLimits
from engines.triton_server.config import chat_config, config_text, parse_config
from engines.triton_server.interface import CHAT_INPUTS, CHAT_OUTPUTS, MODEL_NAME
from engines.triton_server.repository import write_repository
from engines.triton_server.requests import RequestLimits
from engines.triton_server.settings import PARAMETER, ServerSettings
from export.bundle import open_bundle
from export.errors import UserError
from tests.support.bundles import shared_bundle


@pytest.fixture
def bundle(tmp_path_factory):
    return open_bundle(shared_bundle(tmp_path_factory, {"dtype": "float32"}))


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
        ('{"num_slot": 1}', "keys of"),
        ('{"num_slots": 0}', "num_slots must be"),
        ('{"num_slots": true}', "num_slots must be"),
        ('{"requests": {"max_pictures": 0}}', "max_pictures must be"),
        ('{"requests": {"surprise": 1}}', "keys of"),
        ('{"requests": []}', "must be a JSON object"),
        ('{"scheduler": {"max_queue": 0}}', "max_queue must be"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text, says):
    with pytest.raises(UserError, match=says):
        ServerSettings.from_json(text)


def test_a_bundle_without_a_passed_validation_is_refused_unless_that_is_allowed(bundle, tmp_path):
    for verdict in (None, {"passed": False}):
        judged = replace(bundle, manifest=replace(bundle.manifest, verdict=verdict))
        with pytest.raises(UserError, match="--allow-unvalidated"):
            write_repository(judged, tmp_path / "repository", ServerSettings())
        assert not (tmp_path / "repository").exists()
        deployment = write_repository(
            judged, tmp_path / "repository", ServerSettings(), allow_unvalidated=True
        )
        assert not deployment.is_validated
        assert "not proven" in (tmp_path / "repository" / "README.md").read_text(encoding="utf-8")
        record = json.loads((tmp_path / "repository" / "deployment.json").read_text(encoding="utf-8"))
        assert (record["is_validated"], record["verdict"]) == (False, verdict)
        (tmp_path / "repository").rename(tmp_path / f"old-{verdict is None}")


def test_a_validated_bundle_is_placed_by_links_beside_its_runtime(bundle, tmp_path):
    judged = replace(bundle, manifest=replace(bundle.manifest, verdict={"passed": True}))
    assert write_repository(judged, tmp_path / "repository", ServerSettings()).is_validated
    version = tmp_path / "repository" / MODEL_NAME / "1"
    assert open_bundle(version / "bundle").manifest.key == bundle.manifest.key
    [weights] = bundle.manifest.weights
    assert (version / "bundle" / weights.name).samefile(bundle.directory / weights.name)
    assert (version / "runtime" / "engines" / "runtime" / "scheduler.py").is_file()
    assert not list(version.rglob("*.pyc"))
    sources = [path.read_text(encoding="utf-8") for path in (version / "runtime" / "engines").rglob("*.py")]
    assert not any("\nimport torch" in source for source in sources)


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
