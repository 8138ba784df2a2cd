"""What Triton reads about each model before it loads it, written through Triton's own protobuf classes."""

from collections.abc import Sequence

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from engines.serving.settings import PARAMETER, ServerSettings
from engines.serving.triton.interface import (
    CHAT_INPUTS,
    CHAT_OUTPUTS,
    MODEL_NAME,
    PREPROCESS_INPUTS,
    PREPROCESS_NAME,
    VISION_ENCODER_NAME,
    ServerTensor,
    preprocess_outputs,
    vision_inputs,
    vision_outputs,
)
from export.checkpoint.config import ModelConfig

PREPROCESS_INSTANCES = 4
"""Processes that decode and cut up pictures, each one request at a time: some go on while others are at large ones."""


def chat_config(settings: ServerSettings) -> model_config_pb2.ModelConfig:
    """The Python-backend model that streams. No batching by Triton: the scheduler batches token by token."""
    config = _python_model(MODEL_NAME, settings, CHAT_INPUTS, CHAT_OUTPUTS)
    config.model_transaction_policy.decoupled = True
    # One instance: its KV slots and its weights are shared by all requests. More copies are more replicas.
    if settings.engine is None:
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    else:
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, count=1, gpus=[0])
    return config


def preprocess_config(settings: ServerSettings, model: ModelConfig) -> model_config_pb2.ModelConfig:
    """From messages with pictures to what both graphs take, one request a call."""
    config = _python_model(PREPROCESS_NAME, settings, PREPROCESS_INPUTS, preprocess_outputs(model))
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=PREPROCESS_INSTANCES)
    return config


def vision_encoder_config(
    settings: ServerSettings, model: ModelConfig, dtype: str
) -> model_config_pb2.ModelConfig:
    """The vision encoder alone: ONNX Runtime in the Python backend, in float32, or an engine in TensorRT's backend.

    Args:
        settings: with or without an engine.
        model: sizes.
        dtype: that the engine takes and gives.
    """
    if settings.engine is None:
        tensors = vision_inputs(model, "float32"), vision_outputs(model, "float32")
        config = _python_model(VISION_ENCODER_NAME, settings, *tensors)
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
        return config
    config = _model(
        VISION_ENCODER_NAME, "tensorrt", vision_inputs(model, dtype), vision_outputs(model, dtype)
    )
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, count=1)  # on every GPU
    return config


def _python_model(
    name: str, settings: ServerSettings, inputs: Sequence[ServerTensor], outputs: Sequence[ServerTensor]
) -> model_config_pb2.ModelConfig:
    config = _model(name, "python", inputs, outputs)
    config.parameters[PARAMETER].string_value = settings.to_json()
    return config


def _model(
    name: str, backend: str, inputs: Sequence[ServerTensor], outputs: Sequence[ServerTensor]
) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(name=name, backend=backend, max_batch_size=0)
    config.input.extend(_input(tensor) for tensor in inputs)
    config.output.extend(
        model_config_pb2.ModelOutput(name=tensor.name, data_type=_data_type(tensor), dims=tensor.shape)
        for tensor in outputs
    )
    config.version_policy.latest.num_versions = 1
    return config


def config_text(config: model_config_pb2.ModelConfig) -> str:
    """`config.pbtxt`."""
    text: str = text_format.MessageToString(config)
    return text


def parse_config(text: str) -> model_config_pb2.ModelConfig:
    """Read a `config.pbtxt` as Triton does: unknown fields and wrong types are errors."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _input(tensor: ServerTensor) -> model_config_pb2.ModelInput:
    return model_config_pb2.ModelInput(
        name=tensor.name, data_type=_data_type(tensor), dims=tensor.shape, optional=tensor.is_optional
    )


def _data_type(tensor: ServerTensor) -> int:
    number: int = model_config_pb2.DataType.Value(tensor.data_type)
    return number
