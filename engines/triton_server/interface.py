"""Which tensors does the chat model take and give? Declared once.

The model's configuration, its code, the request checks and the clients all read this. No Triton, no torch.
"""

from dataclasses import dataclass

MODEL_NAME = "qwen2_vl"


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
    ServerTensor("max_tokens", "TYPE_INT32", (1,), "most tokens of the answer", True),
    ServerTensor("temperature", "TYPE_FP32", (1,), "0 is greedy", True),
    ServerTensor("top_p", "TYPE_FP32", (1,), "0 to 1", True),
    ServerTensor("top_k", "TYPE_INT32", (1,), "0 switches it off", True),
    ServerTensor("repetition_penalty", "TYPE_FP32", (1,), "1 is none", True),
    ServerTensor("seed", "TYPE_INT64", (1,), "the same seed gives the same answer", True),
    ServerTensor("stop", "TYPE_STRING", (-1,), "texts that end the answer, left out of it", True),
    ServerTensor("timeout_seconds", "TYPE_FP32", (1,), "an answer not finished by then ends as it is", True),
)

CHAT_OUTPUTS = (
    ServerTensor("text", "TYPE_STRING", (1,), "the next piece of the answer, UTF-8, never half a character"),
    ServerTensor(
        "finish_reason",
        "TYPE_STRING",
        (1,),
        "empty until the last response: stop, length, capacity, cancelled or deadline",
    ),
    ServerTensor("usage", "TYPE_STRING", (1,), "empty until the last response: JSON of tokens and seconds"),
)
"""A decoupled stream of responses for each request."""
