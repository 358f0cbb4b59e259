"""Programs that start in a moment, for tests that run them by the dozen.

Python, DVC and the project's command run in forks of one process that has imported TensorFlow,
MLflow and DVC, and nothing of this project. `programs` returns the folder to put first on PATH.
Each program is a process of its own, with its folder, variables, streams, signals and exit status.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

LIBRARIES = (
    *("tensorflow", "keras", "keras_tuner", "mlflow", "mlflow.pyfunc", "mlflow.tracking"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("cv2", "jinja2", "matplotlib.pyplot", "pandas", "pydantic", "scipy.stats", "sklearn.metrics"),
    *("dvc.cli", "dvc.repo", "dvc.repo.reproduce", "dvc.repo.experiments", "dvc_render"),
)

# It hands over its streams, passes signals on, and ends as the fork does.
CLIENT = """\
#!{python} -IS
import json, os, signal, socket, sys

name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python" and "".join(arguments[:1]) not in ("-c", "-m"):
    os.execv({python!r}, [{python!r}, *arguments])
data = json.dumps([name, arguments, os.getcwd(), dict(os.environ)]).encode()
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: link.send(bytes([number])))
socket.send_fds(link, [len(data).to_bytes(8, "big")], [0, 1, 2])
link.sendall(data)
status = int(link.recv(16) or 1)
if os.WIFSIGNALED(status):
    if os.WTERMSIG(status) != signal.SIGKILL:
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
sys.exit(os.WEXITSTATUS(status))
"""


def programs() -> Path | None:
    """Return the folder of the programs python, dvc and emotion-detection.

    The processes of a test session share it. Outside of one, and elsewhere than on Linux, it is
    None.
    """
    from tests.support import session

    return session.made_once("warm", _start) if sys.platform == "linux" else None


def python() -> str:
    """Return the program that runs Python code or modules; its first argument is -c or -m."""
    folder = programs()
    return sys.executable if folder is None else str(folder / "python")


def _start(folder: Path) -> None:
    """Start the process that forks, and write the programs that ask it to."""
    from tests.support import session
    from tests.support.environment import without_settings

    address, log = folder.with_name("socket"), folder.with_name("log")
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, __file__, address, os.environ[session.PROCESS]],
            env=without_settings(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    while not address.exists():
        if server.poll() is not None:
            raise RuntimeError(log.read_text())
        time.sleep(0.02)
    folder.mkdir()
    for name in ("python", "dvc", "emotion-detection"):
        program = folder / name
        program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
        program.chmod(0o755)


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    program: str
    arguments: list[str]
    folder: str
    env: dict[str, str]
    streams: list[int]


def receive(link: socket.socket) -> Request:
    """Return what the client at `link` asks for."""
    length, streams, _, _ = socket.recv_fds(link, 8, 3)
    data = b""
    while len(data) < int.from_bytes(length, "big"):
        data += link.recv(2**16)
    program, arguments, folder, env = json.loads(data)
    return Request(program, arguments, folder, env, streams)


class Server:
    """Forks a process per request, passes signals on to it, and tells its client how it ends.

    A process is killed when its client is gone, and all of them when the test session is.
    """

    def __init__(self, listening: socket.socket, session: int) -> None:
        """Listen there until the process `session` ends."""
        self._listening, self._session = listening, os.pidfd_open(session)
        self._selector = selectors.DefaultSelector()
        self._links: dict[int, socket.socket] = {}
        self._watched: dict[int, int] = {}

    def next(self) -> Request:
        """Serve; return in a new process, and there alone, what it is to do."""
        self._selector.register(self._session, selectors.EVENT_READ)
        self._selector.register(self._listening, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._session:
                    for pid in self._watched:
                        self._signal(pid, signal.SIGKILL)
                    sys.exit()
                elif key.fileobj is self._listening:
                    link, _ = self._listening.accept()
                    request = receive(link)
                    if self._is_new(link, request):
                        return request
                elif key.fileobj is key.fd:
                    self._end(key.fd, key.data)
                elif key.data in self._links:
                    self._pass_on(self._links[key.data], key.data)

    def _is_new(self, link: socket.socket, request: Request) -> bool:
        """Fork, and return whether this is the new process."""
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            self._selector.close()
            for each in (self._listening, link, *self._links.values()):
                each.close()
            for fd in (self._session, *self._watched.values()):
                os.close(fd)
            return True
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        for fd in request.streams:
            os.close(fd)
        self._links[pid], self._watched[pid] = link, os.pidfd_open(pid)
        self._selector.register(link, selectors.EVENT_READ, pid)
        self._selector.register(self._watched[pid], selectors.EVENT_READ, pid)
        return False

    def _end(self, fd: int, pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        link = self._links.pop(pid)
        with contextlib.suppress(OSError):
            link.send(str(status).encode())
        with contextlib.suppress(KeyError):
            self._selector.unregister(link)
        link.close()
        self._selector.unregister(fd)
        os.close(self._watched.pop(pid))

    def _pass_on(self, link: socket.socket, pid: int) -> None:
        numbers = link.recv(16)
        for number in numbers or [signal.SIGKILL]:
            self._signal(pid, number)
        if not numbers:
            self._selector.unregister(link)

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)


def load() -> None:
    """Import what takes seconds, with the variables that the project sets for it."""
    importlib.import_module("emotion_detection")
    for name in LIBRARIES:
        importlib.import_module(name)
    # A project that is run has a copy of its own.
    for name in [name for name in sys.modules if name.partition(".")[0] == "emotion_detection"]:
        del sys.modules[name]
    # What lies in a buffer would be written by each process.
    sys.stdout.flush()
    gc.collect()
    gc.freeze()


def _writer(fd: int) -> TextIO:
    """Return what writes text to `fd` as a new Python would."""
    errors = "backslashreplace" if fd == 2 else "strict"
    return open(fd, "w", errors=errors, closefd=False, buffering=1)


def become(request: Request, paths: list[str]) -> None:
    """Run the requested program in this process, as a new Python would."""
    for number, fd in enumerate(request.streams):
        os.dup2(fd, number)
        os.close(fd)
    # Those of the server are of a file, in which one can seek.
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), _writer(1), _writer(2)  # noqa: SIM115
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules["numpy"].random.seed()
    own = [path for path in request.env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [request.folder, *own, *paths]
    importlib.invalidate_caches()
    program, arguments = request.program, request.arguments
    if program == "dvc":
        sys.argv = [program, *arguments]
        sys.exit(importlib.import_module("dvc.cli").main())
    if program == "emotion-detection":
        arguments = ["-m", "emotion_detection.cli", *arguments]
    kind, what, *rest = arguments
    sys.argv = [kind if kind == "-c" else what, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


def main() -> None:
    """Serve at the address and until the end of the process that the arguments name."""
    address, session = sys.argv[1:]
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [path for path in sys.path[1:] if path not in own]
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(128)
    load()
    become(Server(listening, int(session)).next(), paths)


if __name__ == "__main__":
    main()
