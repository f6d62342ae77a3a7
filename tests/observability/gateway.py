"""`python -m tests.observability.gateway`: the gateway with the test pipelines, in N processes."""

from __future__ import annotations

import importlib
import os
import socket

from service import app, processes
from service.settings import Settings


def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve with the pipelines of tests.gateway and `/pid`, which tells the process."""
    from tests.gateway.tasks import router

    create_app = app.create_app

    def create_app_with_tasks(settings: Settings) -> app.FastAPI:
        made = create_app(settings)
        made.include_router(router)
        made.add_api_route("/pid", os.getpid)
        return made

    app.create_app = create_app_with_tasks
    app.serve(settings, listener)


if __name__ == "__main__":
    processes.run(Settings(), importlib.import_module("tests.observability.gateway").serve)
