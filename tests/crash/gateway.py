"""`python -m tests.crash.gateway`: the gateway with one task more."""

from __future__ import annotations

from fastapi import FastAPI

from service import app as gateway
from service.settings import Settings
from tests.crash.tasks import router

_create = gateway.create_app


def create_app(settings: Settings) -> FastAPI:
    app = _create(settings)
    app.include_router(router)
    return app


if __name__ == "__main__":
    gateway.create_app = create_app
    gateway.main()
