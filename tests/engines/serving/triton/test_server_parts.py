"""The parts as models of their own, on a real tritonserver: messages to tensors, tensors to visual tokens."""

import json

import numpy as np
import pytest

from engines.backends.onnxruntime.session import OnnxRuntimeVision
from engines.serving.settings import ServerSettings
from engines.serving.triton.interface import PREPROCESS_NAME, VISION_ENCODER_NAME
from engines.serving.triton.repository import write_repository
from examples.demo import demo_questions
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from export.processor.processor import Processor
from tests.engines.serving.triton.test_server import TINY
from tests.support.triton import missing, running_server

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

QUESTION = next(question for question in demo_questions() if len(question.images) == 2)
OUTPUTS = ("patches", "positions", "cu_seqlens", "segment_range", "token_ids", "position_ids")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client, and the bundle that is served."""
    client_module = pytest.importorskip("tritonclient.grpc")
    directory = tmp_path_factory.mktemp("parts")
    export_checkpoint(TINY, directory / "bundle")
    write_repository(
        open_bundle(directory / "bundle"),
        directory / "repository",
        ServerSettings(num_slots=1, capacity=512, num_threads=1),
        has_parts=True,
        allow_unvalidated=True,
    )
    with (
        running_server(directory / "repository", directory) as server,
        client_module.InferenceServerClient(server.grpc) as client,
    ):
        yield client, directory / "bundle"


def infer(client, model, outputs, **tensors):
    from tritonclient.grpc import InferInput

    inputs = []
    for name, (data_type, array) in tensors.items():
        inputs.append(InferInput(name, list(array.shape), data_type))
        inputs[-1].set_data_from_numpy(array)
    answer = client.infer(model, inputs)
    return {name: answer.as_numpy(name) for name in outputs}


def preprocess(client, messages, files):
    return infer(
        client,
        PREPROCESS_NAME,
        OUTPUTS,
        messages=("BYTES", np.array([json.dumps(messages).encode()], np.object_)),
        media=("BYTES", np.array(files, np.object_)),
    )


def encode(client, patches, positions, cu_seqlens):
    tensors = {
        "patches": ("FP32", patches),
        "positions": ("INT32", positions),
        "cu_seqlens": ("INT32", cu_seqlens),
        "segment_range": ("INT32", np.arange(np.diff(cu_seqlens).max(), dtype=np.int32)),
    }
    return infer(client, VISION_ENCODER_NAME, ["visual_embeds"], **tensors)["visual_embeds"]


def test_composed_parts_give_what_the_processor_and_the_engine_give(served):
    client, bundle = served
    content = [{"type": "image", "image": f"media:{i}"} for i in range(2)]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION.prompt}]}]
    given = preprocess(client, messages, [path.read_bytes() for path in QUESTION.images])

    content = [{"type": "image", "image": str(path)} for path in QUESTION.images]
    here = Processor.from_directory(bundle).inputs_from_messages(
        [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION.prompt}]}]
    )
    np.testing.assert_array_equal(given["token_ids"], here.token_ids[None])
    np.testing.assert_array_equal(given["position_ids"], here.position_ids[:, None])
    np.testing.assert_array_equal(given["patches"], here.patches)
    geometry = given["positions"], given["cu_seqlens"]
    np.testing.assert_array_equal(geometry[0], here.positions)

    expected = OnnxRuntimeVision(open_bundle(bundle), 1).encode(here.vision)
    np.testing.assert_allclose(encode(client, given["patches"], *geometry), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cu_seqlens": [0, 4, 12]}, "from 0 to the 8 patches"),
        ({"cu_seqlens": [0, 6, 8]}, "multiples of 4"),
        ({"cu_seqlens": [0, 8, 4, 8]}, "must rise"),
        ({"positions": np.full((2, 8), -1)}, "from 0 on"),
        ({"positions": np.zeros((2, 4))}, "positions are of 4 patches"),
    ],
)
def test_tensors_that_would_lead_outside_are_refused_and_the_server_goes_on(served, changes, says):
    client, _ = served
    values = {"positions": np.zeros((2, 8)), "cu_seqlens": [0, 4, 8], **changes}
    patches = np.zeros((8, 1176), np.float32)
    with pytest.raises(Exception, match=says):
        encode(client, patches, *(np.array(values[name], np.int32) for name in ("positions", "cu_seqlens")))
    sound = np.zeros((2, 8), np.int32), np.array([0, 4, 8], np.int32)
    assert encode(client, patches, *sound).shape == (2, 192)


def test_messages_that_mean_nothing_are_that_requests_error(served):
    client, _ = served
    with pytest.raises(Exception, match="messages"):
        preprocess(client, {"role": "user"}, [b""])
