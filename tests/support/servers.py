"""Servers on loopback for tests and benchmarks: MLflow, PostgreSQL and an object store."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import boto3

BUCKET = "mlflow"


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that answers at a port; it can be stopped and started again."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        *,
        health: str = "/",
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        """Take `command`, which answers at `port`; `health` is a path to ask by HTTP, or empty."""
        self.port = port
        self.uri = f"http://127.0.0.1:{port}"
        self._command, self._env, self._user, self._health = command, env or {}, user, health
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, **self._env},
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._command}: ended with {self._process.returncode}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            if self._health:
                urllib.request.urlopen(f"{self.uri}{self._health}", timeout=5).close()
            else:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it and the processes it started."""
        if self._process is not None:
            os.killpg(self._process.pid, how)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stop it for good."""
        self.stop()


def mlflow_server(
    backend_store: str, artifacts: str, *, workers: int = 1, env: Mapping[str, str] | None = None
) -> Server:
    """Return an `mlflow server` on `backend_store` that passes artifacts on to `artifacts`."""
    port = free_port()
    return Server(
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", str(workers)),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--backend-store-uri", backend_store, "--artifacts-destination", artifacts),
        ],
        port,
        health="/health",
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(env or {})},
    )


def missing_postgresql() -> str:
    """Return why PostgreSQL cannot be started here, "" if it can."""
    if os.name == "nt":
        return "PostgreSQL is started here on POSIX systems only"
    if _postgresql() is None:
        return "needs PostgreSQL's initdb and postgres (apt-get install postgresql)"
    if os.geteuid() == 0:
        import pwd

        with contextlib.suppress(KeyError):
            pwd.getpwnam("postgres")
            return ""
        return "PostgreSQL refuses to run as root, and there is no user postgres"
    return ""


def _postgresql() -> Path | None:
    """Return the folder of PostgreSQL's programs, which is not on the PATH in Debian."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else Path("/usr/lib/postgresql").glob("*/bin")
    return max((folder for folder in folders if (folder / "initdb").exists()), default=None)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Run a new PostgreSQL while the block lasts, and yield its address for MLflow."""
    programs = _postgresql()
    assert programs is not None
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgresql."))
    if user is not None:
        shutil.chown(folder, user)
    port = free_port()
    server = Server(
        [
            *(str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
        ],
        port,
        health="",
        user=user,
    )
    try:
        subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", "mlflow", "-A", "trust"],
            user=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        server.start()
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder)


class ObjectStore:
    """An S3 server (moto) with an empty bucket."""

    def __init__(self) -> None:
        """Start it."""
        port = free_port()
        self._server = Server(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port
        )
        self._server.start()
        self.uri = f"s3://{BUCKET}"
        self.env = {
            "MLFLOW_S3_ENDPOINT_URL": self._server.uri,
            "AWS_ENDPOINT_URL": self._server.uri,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client = boto3.client(
            "s3",
            endpoint_url=self._server.uri,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        self._client.create_bucket(Bucket=BUCKET)

    def names(self) -> list[str]:
        """Return the names of all objects."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def close(self) -> None:
        """Stop it; its objects are in memory and are lost."""
        self._server.close()
