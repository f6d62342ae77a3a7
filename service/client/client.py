"""The client itself: one method an endpoint; documents are the API's JSON as it comes."""

from __future__ import annotations

import contextlib
import mimetypes
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from service.client.errors import ApiError, ServiceNotRunning

Document = dict[str, Any]

FINAL = frozenset({"succeeded", "failed", "canceled", "expired"})
_CHUNK_BYTES = 1024 * 1024
# A restarting gateway is back within seconds; a job goes on without anybody who watches.
_RECONNECT_S = 30.0
_PAUSE_S = 0.5
_UNAVAILABLE = 503


class Client:
    """A connection to one service. Methods raise ApiError and ServiceNotRunning.

    `url` is the gateway's; `timeout_s` bounds each answer, not the upload. `api_key` is sent with
    every request; without one, that of VITRINE_API_KEY, if it is set.
    """

    def __init__(self, url: str, timeout_s: float = 120.0, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        key = api_key or os.environ.get("VITRINE_API_KEY")
        self._http = httpx2.Client(
            base_url=self.url,
            timeout=httpx2.Timeout(timeout_s, connect=5.0),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def classify(
        self, path: str | os.PathLike[str], parameters: Mapping[str, Any] | None = None
    ) -> Document:
        """Classify a picture or a video. `parameters`: model, top_k, explain; of videos: clips, crops, window_s ...

        With `mode=async` the answer is a job.
        """
        return self._upload("/v1/classify", path, parameters)

    def deepfake(
        self, path: str | os.PathLike[str], parameters: Mapping[str, Any] | None = None
    ) -> Document:
        """Judge a picture or a video; with `mode=async` the answer is a job."""
        return self._upload("/v1/deepfake", path, parameters)

    def detect(
        self, path: str | os.PathLike[str], parameters: Mapping[str, Any] | None = None
    ) -> Document:
        """Find the objects in a picture. `parameters`: model, threshold, max_detections, classes, masks, format, overlay.

        With `mode=async` the answer is a job.
        """
        return self._upload("/v1/detect", path, parameters)

    def explain(
        self, path: str | os.PathLike[str], parameters: Mapping[str, Any] | None = None
    ) -> Document:
        """Show what a classifier went by in a picture. `parameters`: model, class_index, drawings."""
        return self._upload("/v1/explain", path, parameters)

    def reconstruct(
        self, path: str | os.PathLike[str], parameters: Mapping[str, Any] | None = None
    ) -> Document:
        """Let a model complete a picture of which parts are hidden. `parameters`: model, share, seed, pictures."""
        return self._upload("/v1/reconstruct", path, parameters)

    def segment(
        self, path: str | os.PathLike[str], parameters: Mapping[str, Any] | None = None
    ) -> Document:
        """Divide a picture into segments. `parameters`: model, format, overlay, probability, depth."""
        return self._upload("/v1/segment", path, parameters)

    def upscale(
        self, path: str | os.PathLike[str], parameters: Mapping[str, Any] | None = None
    ) -> Document:
        """Have a picture made larger by a job, and return the job. `parameters`: model, format, tiling, tile, overlap."""
        return self._upload("/v1/upscale", path, {**(parameters or {}), "mode": "async"})

    def embed(
        self,
        paths: Sequence[str | os.PathLike[str]],
        parameters: Mapping[str, Any] | None = None,
    ) -> Document:
        """Turn pictures into vectors. `parameters`: model, encoding_format, normalize, dense, labels ..."""
        with contextlib.ExitStack() as files:
            parts = [
                (
                    "file",
                    (Path(path).name, files.enter_context(Path(path).open("rb")), media_type(path)),
                )
                for path in paths
            ]
            return self._json("POST", "/v1/embed", params=_given(parameters or {}), files=parts)

    def generate_image(self, parameters: Mapping[str, Any]) -> Document:
        """Ask for a picture and return the job. `parameters`: prompt, model, steps, seed ..."""
        return self._json("POST", "/v1/generate/image", json=_given(parameters))

    def jobs(self, parameters: Mapping[str, Any] | None = None) -> Document:
        """Return a page of jobs, newest first. `parameters`: state, task, limit, after."""
        return self._json("GET", "/v1/jobs", params=_given(parameters or {}))

    def job(self, job_id: str) -> Document:
        """Return one job."""
        return self._json("GET", f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> Document:
        """Cancel a job and return it as it is then."""
        return self._json("DELETE", f"/v1/jobs/{job_id}")

    def follow(self, job_id: str) -> Iterator[Document]:
        """Yield the job whenever it changes; the last one is in a final state.

        A connection that breaks is taken up again where it was. Raises ServiceNotRunning or
        ApiError once the service has been away for half a minute.
        """
        job = self.job(job_id)
        yield job
        seen, lost_at = "", None
        while job["state"] not in FINAL:
            try:
                with contextlib.closing(self._events(job_id, seen)) as events:
                    for event in events:
                        seen = event.id or seen
                        if event.event == "state":
                            break
                        if event.event == "progress":
                            job = {**job, "state": "running", "queue_position": None}
                            job["progress"] = event.json()
                            yield job
                job, lost_at = self.job(job_id), None
                yield job
            except (ServiceNotRunning, ApiError) as error:
                if isinstance(error, ApiError) and error.status != _UNAVAILABLE:
                    raise
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > _RECONNECT_S:
                    raise
                time.sleep(_PAUSE_S)

    def result(self, job_id: str, name: str | None = None) -> tuple[str, bytes]:
        """Return content type and bytes of a job's result, or of its file `name`."""
        path = f"/v1/jobs/{job_id}/result" + (f"/{name}" if name else "")
        response = self._send("GET", path)
        return response.headers.get("content-type", ""), response.content

    def models(self, task: str | None = None) -> Document:
        """Return the list of models with their cards and states."""
        return self._json("GET", "/v1/models", params=_given({"task": task}))

    def model(self, model_id: str) -> Document:
        """Return one model's card and state."""
        return self._json("GET", f"/v1/models/{model_id}")

    def load(self, model_id: str) -> Document:
        """Have a model loaded; returns when it is."""
        return self._json("POST", f"/v1/models/{model_id}/load")

    def unload(self, model_id: str) -> Document:
        """Have a model unloaded."""
        return self._json("POST", f"/v1/models/{model_id}/unload")

    def _upload(
        self, path: str, source: str | os.PathLike[str], parameters: Mapping[str, Any] | None
    ) -> Document:
        with Path(source).open("rb") as file:
            headers = {
                "Content-Type": media_type(source),
                "Content-Length": str(os.fstat(file.fileno()).st_size),
            }
            chunks = iter(lambda: file.read(_CHUNK_BYTES), b"")
            return self._json(
                "POST", path, params=_given(parameters or {}), content=chunks, headers=headers
            )

    def _events(self, job_id: str, last: str) -> Generator[httpx2.ServerSentEvent, None, None]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        with (
            self._translated(),
            self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response,
        ):
            if response.is_error:
                response.read()
                raise ApiError.of(response)
            yield from httpx2.EventSource(response)

    def _json(self, method: str, path: str, **request: Any) -> Document:
        document: Document = self._send(method, path, **request).json()
        return document

    def _send(self, method: str, path: str, **request: Any) -> httpx2.Response:
        with self._translated():
            response = self._http.request(method, path, **request)
        if response.is_error:
            raise ApiError.of(response)
        return response

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise ServiceNotRunning(f"No service answers at {self.url}.") from error
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise ServiceNotRunning(f"The connection to {self.url} broke: {reason}.") from error


def media_type(path: str | os.PathLike[str]) -> str:
    """Return the media type by the file's name; the service looks at the bytes where it is unknown."""
    return mimetypes.guess_type(path)[0] or "application/octet-stream"


def _given(parameters: Mapping[str, Any]) -> Document:
    return {name: value for name, value in parameters.items() if value is not None}
