"""Starts a real tritonserver on this machine's CPU for tests and benchmarks, and ends it.

The binary is the one that the package nvidia-pytriton carries, with its Python backend; only loopback is listened on.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

START_SECONDS = 120
EXIT_SECONDS = 20


@dataclass(frozen=True)
class RunningServer:
    process: "subprocess.Popen[bytes]"
    http_port: int
    grpc_port: int
    metrics_port: int
    log: Path

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def metrics(self) -> dict[str, float]:
        """Our metrics by name, as Prometheus would read them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("qv_"))
        return {name.partition("{")[0]: float(value) for name, value in pairs}

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def processes(self) -> list[int]:
        """The server's and its backends' process ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(
            encoding="ascii"
        )
        return [self.process.pid, *map(int, children.split())]


def missing() -> str | None:
    """Why no server can be started here; None if one can."""
    if sys.platform != "linux" or find_spec("pytriton") is None:
        return "needs a tritonserver: pip install --no-deps nvidia-pytriton==0.7.0"
    if not _stub().exists():
        return f"nvidia-pytriton carries no Python backend for Python {sys.version_info.major}.{sys.version_info.minor}"
    if not _numpy_1().exists():
        return f"needs NumPy 1 for its server: pip install --no-deps --target {_numpy_1()} numpy==1.26.4"
    return None


@contextmanager
def running_server(
    repository: Path, directory: Path, command: Sequence[str] | None = None
) -> Iterator[RunningServer]:
    """Serve a model repository on free ports until the context ends.

    Args:
        repository: what `qv-export deploy triton` wrote.
        directory: where the backend and the log go.
        command: what starts it; None: the server itself. It finds the server on its path.

    Raises:
        RuntimeError: it did not become ready; with the end of its log.
    """
    http_port, grpc_port, metrics_port = _free_ports(3)
    log = directory / "server.log"
    server_directory = _package() / "tritonserver" / "bin"
    full_command = [
        *(command or [str(server_directory / "tritonserver")]),
        f"--model-repository={repository}",
        f"--backend-directory={_backends(directory)}",
        "--disable-auto-complete-config",
        "--http-address=127.0.0.1",
        f"--http-port={http_port}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc_port}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics_port}",
        "--metrics-interval-ms=250",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name=qv{os.getpid()}_{http_port}",
    ]
    environment = _environment(directory)
    environment["PATH"] = os.pathsep.join([environment["PATH"], str(server_directory)])
    with log.open("wb") as output:
        process = subprocess.Popen(full_command, stdout=output, stderr=output, env=environment)
    server = RunningServer(process, http_port, grpc_port, metrics_port, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(EXIT_SECONDS + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: RunningServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.is_ready():
        if server.process.poll() is not None or time.monotonic() > deadline:
            text = server.log.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"tritonserver did not become ready:\n{text[-6000:]}")
        time.sleep(0.1)


def _package() -> Path:
    spec = find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _stub() -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return _package() / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"


def _backends(directory: Path) -> Path:
    """The Python backend with the stub of this very Python beside it, where the backend looks."""
    backends = directory / "backends"
    if not backends.exists():
        shutil.copytree(_package() / "tritonserver" / "backends", backends)
        shutil.copy(_stub(), backends / "python" / "triton_python_backend_stub")
    return backends


def _environment(directory: Path) -> dict[str, str]:
    """The server links the package's libraries, its stub the one of this Python.

    The stub ignores PYTHONPATH and PYTHONHOME; it takes the environment of the first `python3` on the path.
    """
    libraries = [_package().parent / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PATH": os.pathsep.join([str(_stub_environment(directory)), os.environ.get("PATH", os.defpath)]),
    }


def _stub_environment(directory: Path) -> Path:
    """`bin` of a virtual environment that has NumPy 1 before all that this one has.

    The stub of this server is built for NumPy 1: beside NumPy 2 it reads every array with a stride of 0.
    """
    home = directory / "stub-environment"
    if not home.exists():
        venv.create(home, symlinks=True)
        [packages] = home.glob("lib/python*/site-packages")
        places = [_numpy_1(), Path(sysconfig.get_path("purelib"))]
        (packages / "places.pth").write_text("\n".join(map(str, places)) + "\n", encoding="utf-8")
    return home / "bin"


def _numpy_1() -> Path:
    return Path(sys.prefix) / "triton-python"


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
