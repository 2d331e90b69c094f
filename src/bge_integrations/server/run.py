"""Run the app: in the foreground, as one process or several, or on a thread."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import uvicorn
from uvicorn.supervisors import Multiprocess

from ..core.encoder import Encoder
from ..environment import is_loopback, variable_set
from ..errors import BGEError, ConfigError, no_thread
from .access import Keys, check_list
from .app import PATHS, build_app
from .limits import Limits
from .logs import FORMATS, LEVELS, log, show_log
from .middleware import check_root_path
from .protocol import config_of


def run_server(
    encoder: Encoder | Callable[[], Encoder],
    *,
    host: str,
    port: int,
    workers: int,
    limits: Limits,
    api_keys: Sequence[str] | Callable[[], Sequence[str]],
    root_path: str,
    log_format: str,
    log_level: str,
    **options: Any,
) -> None:
    """Serve until SIGTERM or SIGINT; see ``serve``."""
    keys = Keys(api_keys)
    for name in ("model_names", "cors_origins"):
        check_list(name, options[name])
    root_path = check_root_path(root_path, PATHS)
    _check_log(log_format, log_level)
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    show_log(log_format, log_level)
    make = partial(_itself, encoder) if isinstance(encoder, Encoder) else encoder
    encoder = make()
    if workers > 1:
        _check_travels(encoder, make, keys)
    options |= {"api_keys": keys, "limits": limits, "root_path": root_path}
    options["local_hosts_only"] = _trusts_all(host, keys)
    with contextlib.closing(_bind(host, port)) as sock:
        url = url_of(host, sock.getsockname()[1]) + root_path
        if not is_loopback(host, bound=True) and not keys:
            log.warning("listening on %s without a key: anyone who reaches this port can use it", host)
        log.info("serving %s at %s (page), %s/embed and %s/v1/embeddings; docs at %s/docs", encoder.card.id, *[url] * 4)
        try:
            if workers > 1:
                _run_workers(Worker(make, options, (log_format, log_level)), sock, workers)
            else:
                _run_one(encoder, options, sock)
        except KeyboardInterrupt:
            log.info("stopped")


def _check_log(log_format: str, log_level: str) -> None:
    for name, value, allowed in (("log_format", log_format, FORMATS), ("log_level", log_level, LEVELS)):
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _itself(encoder: Encoder) -> Encoder:
    return encoder


def _run_one(encoder: Encoder, options: dict[str, Any], sock: socket.socket) -> None:
    failures: list[BGEError] = []

    def stop(error: BGEError) -> None:
        failures.append(error)
        server.should_exit = True

    server = uvicorn.Server(config_of(build_app(encoder, on_fatal=stop, **options), options["limits"]))

    def drain(*_: Any) -> None:
        server.should_exit = True

    keys = options["api_keys"]
    with _on_hangup(keys.reload_soon if keys.reloadable else drain, always=keys.reloadable):
        server.run(sockets=[sock])
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _on_hangup(handle: Callable[..., None], *, always: bool) -> Iterator[None]:
    """Handle SIGHUP for the length of a ``with`` block; unless ``always``, not where ``nohup`` has it ignored."""
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    main = threading.current_thread() is threading.main_thread()
    if hangup is None or not main or (signal.getsignal(hangup) is signal.SIG_IGN and not always):
        yield
        return
    before = signal.signal(hangup, handle)
    try:
        yield
    finally:
        signal.signal(hangup, before)


def _run_workers(worker: Worker, sock: socket.socket, workers: int) -> None:
    reader, writer = multiprocessing.Pipe(duplex=False)
    with (
        tempfile.TemporaryDirectory(prefix="bge-metrics-") as folder,
        # prometheus_client reads it when it is imported, in each worker.
        variable_set("PROMETHEUS_MULTIPROC_DIR", folder),
    ):
        worker = replace(worker, metrics_folder=folder, failures=writer)
        config = config_of(worker, worker.options["limits"], factory=True, workers=workers)
        supervisor = Supervisor(config, sock, reader, worker.options["api_keys"])
        supervisor.run()
    if supervisor.failure is not None:
        raise supervisor.failure


def _check_travels(encoder: Encoder, make: Callable[[], Encoder], keys: Keys) -> None:
    """Refuse what would reach the workers without its key, which a pickled encoder does not hold."""
    advice = "pass serve() a function that makes the encoder, such as partial(load_encoder, model, api_key=...)"
    try:
        travelled = pickle.loads(pickle.dumps(make))()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(f"several workers need an encoder that can be pickled: {advice}") from error
    try:
        pickle.dumps(keys)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError("several workers need an api_keys function that can be pickled: one of a module") from error
    if travelled.key != encoder.key:
        raise ConfigError(
            f"the provider's key is not sent to workers: set its variable in the environment, or {advice}"
        )


@dataclass(frozen=True)
class Worker:
    """Builds the app in each worker process; what it holds reaches the process through a pipe."""

    make: Callable[[], Encoder]
    options: dict[str, Any]
    log_options: tuple[str, str]
    metrics_folder: str = ""
    failures: Connection | None = None

    def __call__(self) -> Any:
        """Build it."""
        show_log(*self.log_options)
        if hangup := getattr(signal, "SIGHUP", None):  # a terminal sends it to workers too; the parent passes it on
            keys = self.options["api_keys"]
            signal.signal(hangup, keys.reload_soon if keys.reloadable else signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, args=(self.metrics_folder,), name="bge-parent", daemon=True).start()
        try:
            return build_app(self.make(), on_fatal=self._end, metrics_folder=self.metrics_folder, **self.options)
        except BGEError as error:
            self._end(error)

    def _end(self, error: BGEError) -> NoReturn:
        """Have the parent stop the server: another worker would have the same error."""
        if self.failures is not None:
            self.failures.send(error)
        os._exit(2)

    def __repr__(self) -> str:
        return "Worker(...)"  # the options hold keys


def _end_with_parent(folder: str) -> None:
    """Shut down once the parent is gone: killed, it can neither stop its workers, which hold the port, nor clean up."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)


class Supervisor(Multiprocess):
    """uvicorn's supervisor, which also stops when a worker reports an error that a new worker would have too."""

    def __init__(self, config: uvicorn.Config, sock: socket.socket, failures: Connection, keys: Keys) -> None:
        hangup = getattr(signal, "SIGHUP", None)  # before uvicorn handles it
        self._ignores_hangup = hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN
        self._keys = keys
        arguments: dict[str, Any] = {"sockets": [sock]}
        if "target" in inspect.signature(Multiprocess).parameters:  # uvicorn up to 0.50
            arguments["target"] = uvicorn.Server(config).run
        super().__init__(config, **arguments)
        self.failure: BGEError | None = None
        self._failures = failures

    def keep_subprocess_alive(self) -> None:
        """Restart workers that died, unless there is no use in it."""
        if self._failures.poll():
            self.failure = self._failures.recv()
            self.should_exit.set()
        super().keep_subprocess_alive()

    def handle_hup(self) -> None:
        """Read the keys again, here for workers to come and in each that runs; without a source of keys, stop."""
        if self._keys.reloadable:
            self._keys.reload()
            for process in self.processes:
                if process.pid is not None:
                    os.kill(process.pid, signal.SIGHUP)
        elif not self._ignores_hangup:
            self.should_exit.set()


@contextlib.contextmanager
def run_background(
    encoder: Encoder, *, host: str, port: int, limits: Limits, api_keys: Sequence[str], **options: Any
) -> Iterator[str]:
    """Serve on a thread; see ``background``.

    Raises:
        BGEError: the server cannot start.
    """
    local = _trusts_all(host, api_keys)
    app = build_app(encoder, limits=limits, api_keys=api_keys, local_hosts_only=local, **options)
    with contextlib.closing(_bind(host, port)) as sock:
        server = uvicorn.Server(config_of(app, limits))
        failures: list[BaseException] = []

        def run() -> None:
            try:
                server.run(sockets=[sock])
            except BaseException as error:
                failures.append(error)
                if server.started:  # nobody waits for it any more
                    raise
            else:
                failures.append(BGEError("it ended at once"))

        thread = threading.Thread(target=run, name="bge-server", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise no_thread("the server", error) from error
        try:
            while not server.started and thread.is_alive():  # uvicorn has no event for it
                time.sleep(0.01)
            if not server.started:
                raise BGEError(f"the server cannot start: {failures[0]!r}") from failures[0]
            yield url_of(host, sock.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(limits.drain_seconds + 5)


def _bind(host: str, port: int) -> socket.socket:
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ConfigError(f"port must be a number from 0 to 65535, not {port!r}")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {host!r} port {port}: {error.strerror}; choose another port") from error
    except (ValueError, TypeError) as error:  # not a name that DNS could hold
        sock.close()
        raise ConfigError(f"cannot listen on {host!r}: not a host name or an address") from error
    sock.set_inheritable(True)  # as uvicorn does with the sockets that it binds for workers
    return sock


def url_of(host: str, port: int) -> str:
    """Return the URL under which this machine reaches the server."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _trusts_all(host: str, api_keys: Sequence[str] | Keys) -> bool:
    return is_loopback(host, bound=True) and not api_keys
