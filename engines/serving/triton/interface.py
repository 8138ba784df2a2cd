"""Tensors that the chat model and its parts take and give, declared once.

The models' configurations, their code, the request checks and the clients all read this. No Triton, no torch.
"""

from dataclasses import dataclass

from export.checkpoint.config import ModelConfig
from export.contract import TensorSpec, decoder_contract, vision_contract

MODEL_NAME = "qwen2_vl"
PREPROCESS_NAME = "preprocess"
VISION_ENCODER_NAME = "vision_encoder"


@dataclass(frozen=True)
class ServerTensor:
    """One input or output of a Triton model without batching: its shape is the whole shape."""

    name: str
    data_type: str
    """As in `config.pbtxt`. TYPE_STRING holds any bytes."""
    shape: tuple[int, ...]
    """-1 where the client chooses."""
    doc: str
    is_optional: bool = False


CHAT_INPUTS = (
    ServerTensor(
        "messages",
        "TYPE_STRING",
        (1,),
        "JSON text of the conversation in the Hugging Face chat format. A picture or video is a data: URL, base64, or "
        '"media:0" for the first entry of `media`',
    ),
    ServerTensor("media", "TYPE_STRING", (-1,), "files of pictures and videos, as their bytes", True),
    ServerTensor(
        "mm_processor_kwargs",
        "TYPE_STRING",
        (1,),
        'JSON text: budgets of all pictures and videos that have none of their own, such as {"max_pixels": 100352}',
        True,
    ),
    ServerTensor(
        "chat_template_kwargs",
        "TYPE_STRING",
        (1,),
        'JSON text: variables of the checkpoint\'s chat template, such as {"add_vision_id": true}',
        True,
    ),
    ServerTensor(
        "tools", "TYPE_STRING", (1,), "JSON text: functions that the template tells the model of", True
    ),
    ServerTensor(
        "continue_final_message", "TYPE_BOOL", (1,), "true: go on with the assistant's last message", True
    ),
    ServerTensor("max_tokens", "TYPE_INT32", (1,), "most tokens of the answer", True),
    ServerTensor("temperature", "TYPE_FP32", (1,), "0 is greedy", True),
    ServerTensor("top_p", "TYPE_FP32", (1,), "0 to 1", True),
    ServerTensor("top_k", "TYPE_INT32", (1,), "0 switches it off", True),
    ServerTensor("repetition_penalty", "TYPE_FP32", (1,), "1 is none", True),
    ServerTensor("min_p", "TYPE_FP32", (1,), "0 switches it off", True),
    ServerTensor("presence_penalty", "TYPE_FP32", (1,), "-2 to 2, 0 is none", True),
    ServerTensor("frequency_penalty", "TYPE_FP32", (1,), "-2 to 2, 0 is none", True),
    ServerTensor("no_repeat_ngram_size", "TYPE_INT32", (1,), "no run of so many tokens comes twice", True),
    ServerTensor("logit_bias", "TYPE_STRING", (1,), 'JSON text by token id, such as {"33": -100}', True),
    ServerTensor("min_tokens", "TYPE_INT32", (1,), "fewest tokens of the answer", True),
    ServerTensor("ignore_eos", "TYPE_BOOL", (1,), "true: go on past the checkpoint's own end", True),
    ServerTensor("stop_token_ids", "TYPE_INT64", (-1,), "tokens that end the answer, left out of it", True),
    ServerTensor("skip_special_tokens", "TYPE_BOOL", (1,), "false: tell <|im_start|> and its like", True),
    ServerTensor("json_schema", "TYPE_STRING", (1,), "JSON text of a schema that the answer must meet", True),
    ServerTensor("regex", "TYPE_STRING", (1,), "that the whole answer must match", True),
    ServerTensor("choice", "TYPE_STRING", (-1,), "texts of which the answer must be one", True),
    ServerTensor("grammar", "TYPE_STRING", (1,), "GBNF or Lark, that the answer must follow", True),
    ServerTensor("seed", "TYPE_INT64", (1,), "the same seed gives the same answer", True),
    ServerTensor("stop", "TYPE_STRING", (-1,), "texts that end the answer, left out of it", True),
    ServerTensor("timeout_seconds", "TYPE_FP32", (1,), "an answer not finished by then ends as it is", True),
    ServerTensor("stream", "TYPE_BOOL", (1,), "true: pieces as they come; false: the answer whole", True),
)

CHAT_OUTPUTS = (
    ServerTensor("text", "TYPE_STRING", (1,), "the next piece of the answer, UTF-8, never half a character"),
    ServerTensor(
        "finish_reason",
        "TYPE_STRING",
        (1,),
        "empty until the last response: stop, length, capacity, cancelled or deadline",
    ),
    ServerTensor(
        "usage",
        "TYPE_STRING",
        (1,),
        "empty until the last response: JSON of tokens, seconds, and what the answer located",
    ),
)
"""One response for each request, or with `stream` a decoupled stream of them."""


# --- the parts, for those who compose --------------------------------------------------------------------

_DATA_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}

PREPROCESS_INPUTS = tuple(
    tensor
    for tensor in CHAT_INPUTS
    if tensor.name
    in {
        *("messages", "media", "mm_processor_kwargs", "chat_template_kwargs", "tools"),
        *("continue_final_message", "timeout_seconds"),
    }
)


def preprocess_outputs(config: ModelConfig) -> tuple[ServerTensor, ...]:
    """What the vision encoder takes, and the decoder's tokens and position ids, as the graphs' contract has them."""
    decoder = decoder_contract(config, "float32")
    of_text = (decoder.input("token_ids"), decoder.input("position_ids"))
    return (*vision_inputs(config, "float32"), *map(_tensor, of_text))


def vision_inputs(config: ModelConfig, dtype: str) -> tuple[ServerTensor, ...]:
    """The vision graph's, in the dtype in which it is served."""
    return tuple(map(_tensor, vision_contract(config, dtype).inputs))


def vision_outputs(config: ModelConfig, dtype: str) -> tuple[ServerTensor, ...]:
    """The vision graph's, in the dtype in which it is served."""
    return tuple(map(_tensor, vision_contract(config, dtype).outputs))


def _tensor(spec: TensorSpec) -> ServerTensor:
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape)
    return ServerTensor(spec.name, _DATA_TYPES[spec.dtype], shape, spec.doc)
