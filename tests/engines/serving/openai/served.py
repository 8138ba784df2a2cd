"""What the tests of the server share: questions as OpenAI's client sends them."""

import base64
from typing import Any

from examples.demo import demo_questions

QUESTIONS = demo_questions()
MODEL = "qwen2-vl-tiny"
HELLO = [{"role": "user", "content": "Hello"}]


def data_url(path, kind="image/png"):
    return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode()


def messages_of(question):
    content = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in question.images]
    content += [
        {"type": "video_url", "video_url": {"url": data_url(path, "video/mp4")}} for path in question.videos
    ]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question.prompt}]}]


def ask(client, messages, **fields):
    return client.chat.completions.create(model=MODEL, messages=messages, **fields)


def body_of(error) -> Any:
    return error.body
