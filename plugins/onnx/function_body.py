"""A model-local function from the body of an op, written as ONNX text."""

from collections.abc import Mapping

import onnx

from plugins.registry import OP_DOMAIN, OPSET_VERSION, OpSignature

MICROSOFT_DOMAIN = "com.microsoft"


def function_from_body(
    signature: OpSignature, statements: str, extra_domains: Mapping[str, int] | None = None
) -> onnx.FunctionProto:
    """Parse `statements` (ONNX textual syntax) as the body of the op's function.

    The header comes from the signature, so inputs, outputs and attributes are the same for every target's body.

    Args:
        signature: the op.
        statements: one node a line, from the signature's inputs to its outputs.
        extra_domains: further operator domains the body uses, with their versions.
    """
    domains = {"": OPSET_VERSION, **(extra_domains or {})}
    imports = ", ".join(f'"{domain}" : {version}' for domain, version in domains.items())
    attributes = f"<{', '.join(signature.attributes)}>" if signature.attributes else ""
    inputs, outputs = ", ".join(signature.inputs), ", ".join(signature.outputs)
    return onnx.parser.parse_function(
        f'<domain: "{OP_DOMAIN}", opset_import: [{imports}]>\n'
        f"{signature.name} {attributes} ({inputs}) => ({outputs}) {{\n{statements}\n}}"
    )
