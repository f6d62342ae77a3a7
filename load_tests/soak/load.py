"""The requests of the soak: each activity repeats at its own pace, and counts what it is answered."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import av
import httpx2
import numpy as np
from PIL import Image

SPARE = "convnext-spare"
"""The entry that is loaded and unloaded; nothing else uses it."""

_FINAL = ("succeeded", "failed", "canceled", "expired")
_PROMPTS = ("a red circle", "a blue star", "a green square", "a yellow triangle")


class Unexpected(Exception):
    """An answer that the activity does not allow."""


class Load:
    """Mixed requests to one gateway. `rate` multiplies every pace (1: about 15 % of a core)."""

    def __init__(self, url: str, clip: bytes, rate: float, seed: int = 0) -> None:
        self.answers: Counter[str] = Counter()
        self.surprises: list[str] = []
        self._random = random.Random(seed)
        self._rate = rate
        self._clip = clip
        self._picture = picture(seed)
        self._client = httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False)

    async def run(self) -> None:
        """Go on until cancelled."""
        activities: dict[Callable[[], Awaitable[str]], float] = {
            self.classify: 3,
            self.wrong: 10,
            self.generate_followed: 15,
            self.generate_polled: 25,
            self.generate_cancelled: 30,
            self.classify_as_job: 20,
            self.deepfake: 30,
            self.look_around: 10,
            self.reload: 120,
        }
        async with self._client, asyncio.TaskGroup() as group:
            for activity, period_s in activities.items():
                group.create_task(self._repeat(activity, period_s / self._rate))

    async def _repeat(self, activity: Callable[[], Awaitable[str]], period_s: float) -> None:
        name = getattr(activity, "__name__", "activity")
        await asyncio.sleep(self._random.uniform(0, period_s))
        while True:
            try:
                self.answers[f"{name}: {await activity()}"] += 1
            except (Unexpected, httpx2.HTTPError, KeyError, ValueError) as surprise:
                self.answers[f"{name}: unexpected"] += 1
                self.surprises.append(f"{name}: {type(surprise).__name__}: {surprise}"[:500])
            await asyncio.sleep(self._random.uniform(0.7, 1.3) * period_s)

    async def classify(self) -> str:
        answer = await self._post_picture("/v1/classify?model=convnext-demo")
        return str(_expect(answer, 200).status_code)

    async def classify_as_job(self) -> str:
        answer = await self._post_picture("/v1/classify?model=convnext-demo&mode=async")
        return await self._finish(_expect(answer, 202).json()["id"])

    async def deepfake(self) -> str:
        headers = {"Content-Type": "video/mp4"}
        answer = await self._client.post("/v1/deepfake", content=self._clip, headers=headers)
        return str(_expect(answer, 200).status_code)

    async def wrong(self) -> str:
        """A broken picture, an unknown model, an unknown job or parameters that do not fit."""
        kind = self._random.randrange(4)
        if kind == 0:
            headers = {"Content-Type": "image/png"}
            broken = self._picture[: len(self._picture) // 2]
            answer = await self._client.post("/v1/classify", content=broken, headers=headers)
        elif kind == 1:
            answer = await self._post_picture("/v1/classify?model=nothing")
        elif kind == 2:
            answer = await self._client.get(f"/v1/jobs/job_{'0' * 26}")
        else:
            answer = await self._client.post("/v1/generate/image", json={"steps": -1})
        return str(_expect(answer, 400, 404, 422).status_code)

    async def generate_followed(self) -> str:
        """Follow the events; half of the time hang up after the first and resume behind it."""
        job_id = await self._generate()
        last = None
        if self._random.random() < 0.5:
            last, _ = await self._follow(job_id, None, most=1)
        _, state = await self._follow(job_id, last)
        if state != "succeeded":
            raise Unexpected(f"{job_id} ended as {state}")
        await self._fetch(job_id)
        return str(state)

    async def generate_polled(self) -> str:
        return await self._finish(await self._generate(n=2))

    async def generate_cancelled(self) -> str:
        job_id = await self._generate(steps=50)
        await asyncio.sleep(self._random.uniform(0, 1.5))
        _expect(await self._client.delete(f"/v1/jobs/{job_id}"), 200, 202)
        return await self._finish(job_id, "canceled", "succeeded")

    async def look_around(self) -> str:
        for path in ("/readyz", "/metrics", "/v1/models", "/v1/jobs?limit=5"):
            _expect(await self._client.get(path), 200)
        return "200"

    async def reload(self) -> str:
        """Unload the spare model if it is loaded and load it by its first use."""
        _expect(await self._client.post(f"/v1/models/{SPARE}/unload"), 200)
        for _ in range(3):
            answer = await self._post_picture(f"/v1/classify?model={SPARE}")
            if answer.status_code != 503:
                break
            await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
        return str(_expect(answer, 200).status_code)

    async def _post_picture(self, path: str) -> httpx2.Response:
        headers = {"Content-Type": "image/png"}
        return await self._client.post(path, content=self._picture, headers=headers)

    async def _generate(self, **parameters: int) -> str:
        sent = {"prompt": self._random.choice(_PROMPTS), "steps": 4} | parameters
        answer = await self._client.post("/v1/generate/image", json=sent)
        return str(_expect(answer, 202).json()["id"])

    async def _follow(
        self, job_id: str, after: str | None, most: int | None = None
    ) -> tuple[str | None, str | None]:
        """Read up to `most` events; return the last one's id and the final state, if it came."""
        headers = {"Last-Event-ID": after} if after else {}
        count, kind, state = 0, "", None
        path = f"/v1/jobs/{job_id}/events"
        async with self._client.stream("GET", path, headers=headers) as answer:
            _expect(answer, 200)
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    after = value
                elif name == "event":
                    kind = value
                elif name == "data":
                    count += 1
                    if kind == "state":
                        state = json.loads(value)["state"]
                    if count == most:
                        break
        return after, state if state in _FINAL else None

    async def _finish(self, job_id: str, *allowed: str) -> str:
        while True:
            job = _expect(await self._client.get(f"/v1/jobs/{job_id}"), 200).json()
            if job["state"] in _FINAL:
                break
            await asyncio.sleep(0.5)
        if job["state"] not in (allowed or ("succeeded",)):
            raise Unexpected(f"{job_id} ended as {job['state']}: {job['error']}")
        if job["state"] == "succeeded":
            await self._fetch(job_id)
        return str(job["state"])

    async def _fetch(self, job_id: str) -> None:
        answer = _expect(await self._client.get(f"/v1/jobs/{job_id}/result"), 200)
        if not answer.content:
            raise Unexpected(f"the result of {job_id} is empty")


def picture(seed: int, size: int = 256) -> bytes:
    """Return a PNG of soft colours, `size` pixels square."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    body = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(body, "PNG")
    return body.getvalue()


def clip(path: Path, seed: int = 5) -> bytes:
    """Return one second of a drawn face as MP4, written to `path`."""
    from models.demo.clips import frames

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        for number, pixels in enumerate(frames(seed=seed, manipulated=True, count=10)):
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def _expect(answer: httpx2.Response, *statuses: int) -> httpx2.Response:
    if answer.status_code not in statuses:
        told = answer.text if answer.is_closed else ""
        raise Unexpected(f"{answer.request.url.path}: {answer.status_code} {told[:300]}")
    return answer
