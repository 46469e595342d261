"""Optuna's own dashboard over a run, for this machine alone."""

from importlib import import_module
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import InMemoryStorage

from search.config import load_config
from search.ledger import read
from search.optuna_export import Mirror, keep_up
from search.run_folder import RunFolder
from spaces.errors import UserError

HOST = "127.0.0.1"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a browser keeps its connections


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


def serve(folder: RunFolder, port: int) -> None:
    """Serves the study of the run in `folder` until Ctrl-C, up to date while the run is searched.

    Raises UserError where optuna-dashboard is not installed or the port is taken.
    """
    try:
        dashboard = import_module("optuna_dashboard")
    except ImportError:
        raise UserError(
            "optuna-dashboard is not installed: pip install optuna-dashboard, or write the study "
            "to a file with --to"
        ) from None
    storage = InMemoryStorage()
    study = Mirror(folder, load_config(folder.config), storage)
    study.update(read(folder.ledger))
    try:
        server = make_server(
            HOST, port, dashboard.wsgi(storage), server_class=_Server, handler_class=_Quiet
        )
    except OSError as error:
        raise UserError(
            f"port {port} cannot be had: {error.strerror}; give another one with --port"
        ) from None
    with server:
        Thread(target=keep_up, args=(study, folder), daemon=True).start()
        print(
            f"Optuna's dashboard: http://{HOST}:{server.server_port} (Ctrl-C ends it)", flush=True
        )
        server.serve_forever()
