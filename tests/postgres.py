"""A PostgreSQL server of the tests' own: on loopback, in a temporary folder, as a user that is not root."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import psycopg
import pytest

from confide.ledger.address import DatabaseAddress

PASSWORD: Final = "wiederholt-geheim-4711"
USER: Final = "keeper"
_UNPRIVILEGED: Final = ("postgres", "nobody")


class Postgres:
    """A server, which may be killed and started again on the same data."""

    def __init__(self) -> None:
        found = shutil.which("postgres") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")), None)
        if found is None:
            pytest.skip("PostgreSQL's server is not installed; `make system-deps` brings it")
        self._binaries = Path(found).resolve().parent
        self._user = _unprivileged()
        self.folder = Path(tempfile.mkdtemp(prefix="confide-postgres-"))
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        (self.folder / "password").write_text(PASSWORD)
        (self.folder / "password").chmod(0o644)
        self._run("initdb", "-U", USER, "-A", "scram-sha-256", "--no-sync", "--locale=C", "--encoding=UTF8",
                  "--pwfile", str(self.folder / "password"), "-D", str(self.folder / "data"))  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.start()

    def _run(self, program: str, *words: str) -> None:
        subprocess.run(
            [self._binaries / program, *words], user=self._user, cwd=self.folder, check=True, capture_output=True
        )

    def start(self, **settings: str) -> None:
        """Returns once it lets clients in."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "shared_buffers": "16MB",
            "autovacuum": "off",
        } | settings
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.folder / "data", *words],
                user=self._user,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL for the server and all that it has started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """For good."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self) -> psycopg.Connection:
        """As the administrator."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, dbname="postgres", user=USER, password=PASSWORD, autocommit=True
        )

    def database(self) -> DatabaseAddress:
        """An empty one, whoever used it before."""
        with self.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='confide'"
            )
            connection.execute("DROP SCHEMA IF EXISTS confide_ledger CASCADE")
        return DatabaseAddress("127.0.0.1", self.port, "postgres", USER)


def _unprivileged() -> str | None:
    """Whom to be instead of root, for which PostgreSQL does not run; None where this is not root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in _UNPRIVILEGED:
        if name in known:
            return name
    pytest.skip("PostgreSQL does not run as root, and there is no other user")
