"""Asks `qv-export serve` about a picture with OpenAI's client: `openai_client.py PICTURE QUESTION`."""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI
from openai.types.chat import ChatCompletionContentPartParam

client = OpenAI(base_url=os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
picture = "data:image/*;base64," + base64.b64encode(Path(sys.argv[1]).read_bytes()).decode()
content: list[ChatCompletionContentPartParam] = [
    {"type": "image_url", "image_url": {"url": picture}},
    {"type": "text", "text": sys.argv[2]},
]
[model] = client.models.list()
answer = client.chat.completions.create(
    model=model.id, messages=[{"role": "user", "content": content}], stream=True
)
for chunk in answer:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
