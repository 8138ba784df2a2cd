"""LangChain asks `qv-export serve` about a picture: `langchain_client.py PICTURE QUESTION`."""

import base64
import os
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

address = os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1")
name = os.environ.get("MODEL", "qwen2-vl-tiny")
model = ChatOpenAI(model=name, base_url=address, api_key=lambda: "none")
picture = "data:image/*;base64," + base64.b64encode(Path(sys.argv[1]).read_bytes()).decode()
image = {"type": "image_url", "image_url": {"url": picture}}
for chunk in model.stream([HumanMessage([image, {"type": "text", "text": sys.argv[2]}])]):
    print(chunk.text, end="", flush=True)
print()
