"""A model's process that Triton takes for dead while it loads the model: a real Triton, a process held for 2 s."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import psutil
import pytest

from models.repository import write_catalogue
from service.errors import TritonUnavailable
from service.triton.cards import CATALOGUE, Task
from tests.processes import descendants
from tests.triton.server import loaded, triton
from tests.triton.test_backend import image
from tests.triton.toys import write_toy


async def test_a_process_that_triton_gave_up_is_ended_and_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    write_catalogue(repository)
    write_toy(repository, "brightness", "slow", default=True)
    module = repository / "slow" / "1" / "model.py"
    # Slow the first time only, so that there is time to hold it.
    module.write_text(
        module.read_text().replace(
            "        return Brightness(device.dtype)",
            "        if not (begun := folder / 'begun').exists():\n"
            "            begun.touch()\n"
            "            time.sleep(4)\n"
            "        return Brightness(device.dtype)",
        )
    )
    monkeypatch.setenv("VITRINE_TRITON__START_S", "1")
    async with triton(repository, [CATALOGUE]) as client:
        loading = asyncio.create_task(client.load("slow"))
        async with asyncio.timeout(200):
            while not (module.parent / "begun").exists():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
            entry = str(module.parent.parent)
            (process,) = (p for p, words in descendants() if any(entry in w for w in words[:2]))
            process.suspend()
            await asyncio.sleep(2.5)
            process.resume()
            with contextlib.suppress(TritonUnavailable):  # of a caller who does not wait that long
                await loading
            await loaded(client, "slow")
        card = await client.resolve(Task.CLASSIFICATION, None)
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        assert (await client.infer(card.id, image(5)))["SCORES"][0, 0] == 5
    log = (tmp_path / "triton.log").read_text()
    assert f"process {process.pid} is ready and Triton has not taken it up" in log
