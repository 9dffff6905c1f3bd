"""Workers on a Ray cluster: the same worker as a process of this machine, as an actor of Ray.

An actor connects back to the server, and the two then speak over that connection as over the pipe of a
local process. The folders of models and of the server's data must be at the same place on all machines.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from pellucid.serve.worker import Worker, WorkerOptions

SECONDS = 600.0
"""How long the cluster may take to have room for an actor."""


class Replica:
    """The life of a worker, in an actor."""

    def ready(self) -> None:
        """There is one as soon as the cluster has room."""

    def run(self, address: tuple[str, int], key: bytes, options: WorkerOptions) -> None:
        """Draw what comes over the connection, until the server closes it."""
        with (
            suppress(EOFError, BrokenPipeError, ConnectionResetError),
            Client(address, authkey=key) as connection,
        ):
            Worker(connection, options).run()


class RemoteProcess:
    """An actor, with the methods of a `multiprocessing.Process` that the engine uses."""

    exitcode = None

    def __init__(self, options: WorkerOptions) -> None:
        """Raises ValueError: there is no cluster, or no room in it."""
        ray = connected()
        key = secrets.token_bytes(32)
        gpus = 1 if options.device.startswith("cuda") else 0
        self._actor: Any = ray.remote(Replica).options(num_cpus=1, num_gpus=gpus).remote()
        try:
            ray.get(self._actor.ready.remote(), timeout=SECONDS)
        except ray.exceptions.RayError as error:
            self.kill()
            raise ValueError(f"the Ray cluster gives no worker: {error}") from None
        with Listener((ray.util.get_node_ip_address(), 0), authkey=key) as listener:
            self._run = self._actor.run.remote(listener.address, key, options)
            self.connection: Connection = listener.accept()

    def is_alive(self) -> bool:
        """Whether it still draws."""
        import ray

        return not ray.wait([self._run], timeout=0)[0]

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        import ray

        ray.wait([self._run], timeout=timeout)

    def kill(self) -> None:
        """End it now."""
        import ray

        ray.kill(self._actor)


def connected() -> Any:
    """Ray, connected to the cluster of RAY_ADDRESS, or to one that it starts on this machine.

    Nothing is reported to Ray's makers. Raises ValueError: there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.util
    except ImportError:
        raise ValueError("ray is missing; install the extra: pip install 'pellucid[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
        except Exception as error:  # Ray raises no narrower one
            where = os.environ.get("RAY_ADDRESS")
            what = "cannot be started here" if where is None else f"at {where} does not answer"
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"the Ray cluster {what}: {first[:300]}") from None
    return ray
