"""What does Triton read about the chat model before it loads it? Written through Triton's own protobuf classes."""

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from engines.triton_server.interface import CHAT_INPUTS, CHAT_OUTPUTS, MODEL_NAME, ServerTensor
from engines.triton_server.settings import PARAMETER, ServerSettings


def chat_config(settings: ServerSettings) -> model_config_pb2.ModelConfig:
    """The Python-backend model that streams. No batching by Triton: the scheduler batches token by token."""
    config = model_config_pb2.ModelConfig(name=MODEL_NAME, backend="python", max_batch_size=0)
    config.input.extend(_input(tensor) for tensor in CHAT_INPUTS)
    config.output.extend(
        model_config_pb2.ModelOutput(name=tensor.name, data_type=_data_type(tensor), dims=tensor.shape)
        for tensor in CHAT_OUTPUTS
    )
    config.model_transaction_policy.decoupled = True
    # One instance: its KV slots and its weights are shared by all requests. More copies are more replicas.
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    config.version_policy.latest.num_versions = 1
    config.parameters[PARAMETER].string_value = settings.to_json()
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
