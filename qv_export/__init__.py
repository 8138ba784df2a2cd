"""Qwen2-VL from a checkpoint to ONNX graphs and engines, proved against PyTorch and served.

    import qv_export

    bundle = qv_export.export("path/to/checkpoint", "bundle")
    model = qv_export.load(bundle)
    print(model.generate("What is in this image?", images=["street.png"]).text)

Names are loaded when they are first used: importing this package loads nothing heavy, and PyTorch only comes with
`export` and `validate`.
"""

TYPE_CHECKING = False  # type checkers take it for true; `typing` itself takes longer than all of this package

if TYPE_CHECKING:
    from export.bundle import Bundle
    from export.errors import UserError
    from qv_export.api import bench, build, export, load, serve, validate
    from qv_export.model import Answer, Chat, Model

    __version__: str

del TYPE_CHECKING

__all__ = [
    "Answer",
    "Bundle",
    "Chat",
    "Model",
    "UserError",
    "__version__",
    "bench",
    "build",
    "export",
    "load",
    "serve",
    "validate",
]

_HOMES = {
    "Answer": "qv_export.model",
    "Bundle": "export.bundle",
    "Chat": "qv_export.model",
    "Model": "qv_export.model",
    "UserError": "export.errors",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        return version("qv-export")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "qv_export.api")), name)


def __dir__() -> list[str]:
    return __all__
