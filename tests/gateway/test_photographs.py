"""Photographs through the whole service give the scores that the papers' own transforms give.

The reference is torchvision's: resized by Pillow, cropped, scaled to 0..1, normalised; then the network in this
process, in float32. Both see the shipped ConvNeXt, which takes pictures of any size, behind the pre-processing of
each network in the registry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from pathlib import Path

import httpx2
import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from models.layers.classifier import Classifier
from models.registry import architecture, architectures
from models.repository import shipped, write_catalogue, write_entry
from models.serving import Device
from service.settings import LimitSettings, TritonSettings
from service.tasks.classify.pipeline import Classify
from service.tasks.classify.schemas import ClassifyParameters
from service.tasks.contract import Upload, unreported
from service.triton.cards import CATALOGUE, Card, ImageInput, Task
from tests.gateway.conftest import build, in_process, settings_for
from tests.jobs.redis_server import RedisServer
from tests.tasks.scripted import ScriptedTriton, context
from tests.triton.server import loaded, triton

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
RELATIVE = 1e-3
# One of each kind of transform, through Triton; all of them through the pipeline.
REPRESENTATIVES = ("tnt:small", "swin:base-1k-384", "gmm-vit:cifar10")


def image_inputs() -> dict[str, ImageInput]:
    """Return every pre-processing of RGB pictures to one size in the registry, by the first variant that has it."""
    found: dict[ImageInput, str] = {}
    for slug, made in architectures().items():
        for variant in made.variants.values():
            image = variant.image
            if image is not None and image.colour == "RGB" and image.is_fixed:
                found.setdefault(image, f"{slug}:{variant.name}")
    return {name: image for image, name in found.items()}


INPUTS = image_inputs()


def reference(image: ImageInput) -> v2.Transform:
    """Return torchvision's transform of a Pillow picture to a normalised tensor."""
    size = [image.height, image.width]
    if image.interpolation == "linear":
        # In float32: of bytes torchvision mixes with shares of 8 bits, which is a level off now and then.
        sized = [
            v2.PILToTensor(),
            v2.ToDtype(torch.float32),
            v2.Resize(size, antialias=False),
            v2.Lambda(lambda pixels: pixels.round().to(torch.uint8)),
        ]
    else:
        filter_ = InterpolationMode(image.interpolation)
        if image.resize == "squash":
            sized = [v2.Resize(size, filter_)]
        else:
            sized = [v2.Resize(image.resize_to or min(size), filter_), v2.CenterCrop(size)]
        sized.append(v2.PILToTensor())
    return v2.Compose(
        [*sized, v2.ToDtype(torch.float32, scale=True), v2.Normalize(image.mean, image.std)]
    )


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)())


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def card_with(name: str) -> Card:
    """Return the shipped classifier's card, in float32, with the pictures of the variant `name`."""
    id = name.replace(":", "-").lower()
    return shipped("convnext-demo")[0].model_copy(
        update={
            "id": id,
            "image": INPUTS.get(name) or image_of(name),
            "precision": "float32",
            "runtime": "torch",
            "default": False,
        }
    )


def image_of(name: str) -> ImageInput:
    slug, _, variant = name.partition(":")
    image = architecture(slug).variants[variant].image
    assert image is not None
    return image


@pytest.fixture(scope="module")
def network() -> nn.Module:
    _, parts = shipped("convnext-demo")
    made = architecture("convnext")
    network = made.network(made.config("demo"))
    network.load_state_dict(load_file(parts["model.safetensors"]))
    return network.float().eval()


@torch.inference_mode()
def expected(network: nn.Module, image: ImageInput, name: str) -> np.ndarray:
    """Return the logits that the papers' own transform leads to, less their mean."""
    logits = network(reference(image)(photograph(name))[None])[0].double().numpy()
    return logits - logits.mean()


def logits(predictions: list[Mapping[str, object]]) -> np.ndarray:
    """Return the logits, less their mean, that all labels' probabilities stand for."""
    scores = np.empty(len(predictions))
    scores[[p["index"] for p in predictions]] = [p["score"] for p in predictions]
    found = np.log(scores)
    return found - found.mean()


def check(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= RELATIVE * np.abs(wanted).max()


@pytest.mark.parametrize("name", INPUTS)
async def test_every_preprocessing_is_torchvision_s(name: str, network: nn.Module) -> None:
    card = card_with(name)
    served = Classifier(network, card, Device())

    async def answer(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return served.predict(dict(inputs))

    triton_ = ScriptedTriton({card.id: answer}, card)
    for photo in PHOTOGRAPHS[:2]:
        outcome = await Classify().run(
            ClassifyParameters(top_k=len(card.labels)),
            Upload("image/png", png(photograph(photo))),
            context(triton_),
            unreported,
        )
        wanted = expected(network, image_of(name), photo)
        check(logits(outcome.document["predictions"]), wanted)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx2.AsyncClient]:
    directory = tmp_path_factory.mktemp("photographs")
    repository: Path = directory / "repository"
    write_catalogue(repository)
    cards = [card_with(name) for name in REPRESENTATIVES]
    for card in cards:
        write_entry(repository, card, shipped("convnext-demo")[1], "cpu")
    async with triton(repository, [CATALOGUE]) as client:
        for card in cards:
            await loaded(client, card.id)
        address = TritonSettings(url=client.settings.url)
        settings = settings_for(redis_server, directory, triton=address, limits=LimitSettings())
        async with in_process(build(settings)) as gateway:
            yield gateway


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", REPRESENTATIVES)
async def test_scores_through_rest_are_those_of_the_reference(
    name: str, gateway: httpx2.AsyncClient, network: nn.Module
) -> None:
    card = card_with(name)
    assert card.task is Task.CLASSIFICATION
    for photo in PHOTOGRAPHS:
        answer = await gateway.post(
            "/v1/classify",
            params={"model": card.id, "top_k": len(card.labels)},
            content=png(photograph(photo)),
        )
        assert answer.status_code == 200, answer.text
        check(logits(answer.json()["predictions"]), expected(network, image_of(name), photo))
