"""The pages: `/` to try the service, `/docs` for the reference."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI sets style attributes and draws its icons from data URLs.
_DOCS_POLICY = _POLICY + "; style-src 'self' 'unsafe-inline'"


def mount_pages(app: FastAPI) -> None:
    """Serve the pages and their assets."""

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _page("index.html", _POLICY)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _page("docs.html", _DOCS_POLICY)

    app.mount("/web", StaticFiles(directory=_HERE / "static"), name="web")
    swagger = Path(str(files("fastapi_offline"))) / "static"
    app.mount("/docs/assets", StaticFiles(directory=swagger), name="docs-assets")


def _page(name: str, policy: str) -> Response:
    return FileResponse(
        _HERE / name,
        media_type="text/html",
        headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"},
    )
