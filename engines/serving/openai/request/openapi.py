"""What the server takes and gives, as an OpenAPI document."""

from functools import cache
from importlib.metadata import version
from typing import Any

from engines.serving.openai.request.schema import ChatCompletionRequest

_DEFINITIONS = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_PLAIN = {
    "/v1/models": "The model.",
    "/health": "The process answers.",
    "/ready": "The model is warm, and the server takes requests; 503 once it is shutting down.",
    "/version": "Versions of qv-export and ONNX Runtime.",
    "/metrics": "The scheduler's counts for Prometheus.",
}


@cache
def openapi_schema() -> dict[str, Any]:
    """The document."""
    request = ChatCompletionRequest.model_json_schema(ref_template=_DEFINITIONS)
    definitions = request.pop("$defs", {})
    chat = {
        "post": {
            "summary": "Answer a conversation, whole or as server-sent events.",
            "requestBody": {
                "required": True,
                "content": _json({"$ref": _reference("ChatCompletionRequest")}),
            },
            "responses": {
                "200": {"description": "The answer.", "content": _json({"type": "object"})},
                "4XX": {
                    "description": "What the client can mend.",
                    "content": _json({"$ref": _reference("Error")}),
                },
                "5XX": {
                    "description": "What it cannot.",
                    "content": _json({"$ref": _reference("Error")}),
                },
            },
        }
    }
    plain = {
        path: {"get": {"summary": summary, "responses": {"200": {"description": "As said."}}}}
        for path, summary in _PLAIN.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "qv-export serve", "version": version("qv-export")},
        "paths": {"/v1/chat/completions": chat, **plain},
        "components": {"schemas": {"ChatCompletionRequest": request, "Error": _ERROR, **definitions}},
    }


def _reference(name: str) -> str:
    return _DEFINITIONS.format(model=name)


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
