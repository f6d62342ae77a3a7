"""The one Triton Python backend that all models share.

A predictor's requests, as the dynamic batcher collected them, run in one forward pass; when that
fails, they run one by one, so that only the bad one gets an error. A generator's requests stream
progress and results until done; one whose caller has gone is left out of the steps that follow.
What an exported graph answers is answered without torch, which takes half a gigabyte a process.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from models.presence import Presence
from models.serving import Arrays, Generator, InvalidInput, Predictor
from models.signatures import SIGNATURES
from models.withdrawals import forget, is_withdrawn
from service.triton.cards import Card

# What a process that uses a GPU holds there beside its tensors: CUDA's context and kernels.
_CONTEXT_BYTES = 512 * 1024 * 1024


class TritonPythonModel:
    """Triton's interface: one instance of one model on one device."""

    _taken = -1

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._card = Card.model_validate_json(config["parameters"]["card"]["string_value"])
        self._signature = SIGNATURES[self._card.task]
        folder = Path(args["model_repository"]) / args["model_version"]
        served = self._load(folder, args["model_instance_kind"], args["model_instance_device_id"])
        self._repository = Path(args["model_repository"]).parent
        self._presence = Presence(self._repository, self._card.id)
        self._tell_memory()
        self._predictor = served if isinstance(served, Predictor) else None
        self._generator = served if isinstance(served, Generator) else None

    def execute(self, requests: list[Any]) -> list[Any] | None:
        with self._presence, self._mode():
            if self._generator is not None:
                self._stream(requests, self._generator)
                answers = None
            else:
                answers = self._answer(requests)
            self._tell_memory()
            return answers

    def finalize(self) -> None:
        self._presence.close()

    def _load(self, folder: Path, kind: str, device_id: str) -> Predictor | Generator:
        card = self._card
        self._device = "cpu"
        self._mode: Callable[[], AbstractContextManager[Any]] = nullcontext
        # Exported graphs are for CPUs; on a GPU the same entry runs in torch.
        if card.runtime == "openvino" and kind != "GPU":
            from models.runtimes import openvino

            return openvino.load(card, folder)
        import torch

        from models.runtimes import eager

        torch.set_grad_enabled(False)
        served, device = eager.load(card, folder, kind, device_id)
        if card.precision == "bfloat16" and device.dtype is not torch.bfloat16:
            pb_utils.Logger.log_warn(
                f"{card.id}: {device.name} does not compute in bfloat16; float32 is used"
            )
        self._device, self._mode = device.name, torch.inference_mode
        return served

    def _tell_memory(self) -> None:
        """Note what the model holds on its GPU: what torch has taken, which only grows."""
        if self._device != "cpu":
            import torch

            taken = torch.cuda.memory_reserved(self._device)
            if taken != self._taken:
                self._taken = taken
                total = torch.cuda.get_device_properties(self._device).total_memory
                self._presence.holds(self._device, taken + _CONTEXT_BYTES, total)

    # Predictors

    def _answer(self, requests: list[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[Any, ...], list[int]] = {}
        inputs = [self._inputs(request) for request in requests]
        for index, request in enumerate(requests):
            if request.is_cancelled() or _is_late(request):
                responses[index] = _failure("given up", pb_utils.TritonError.CANCELLED)
                continue
            shape = tuple((name, array.shape[1:]) for name, array in sorted(inputs[index].items()))
            groups.setdefault(shape, []).append(index)
        for members in groups.values():
            for index, outcome in zip(
                members, self._predict([inputs[i] for i in members]), strict=True
            ):
                responses[index] = self._response(requests[index], outcome)
        return responses

    def _predict(self, batch: Sequence[Arrays]) -> list[Arrays | Exception]:
        """Run the requests together, or each alone if that fails; a failure stands for its outputs."""
        assert self._predictor is not None
        sizes = [len(next(iter(arrays.values()))) for arrays in batch]
        try:
            joined = {name: np.concatenate([a[name] for a in batch]) for name in batch[0]}
            ends = np.cumsum(sizes)[:-1]
            outputs = self._predictor.predict(joined)
            split = {name: _split(output, ends) for name, output in outputs.items()}
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [outcome for arrays in batch for outcome in self._predict([arrays])]
        return [{name: parts[i] for name, parts in split.items()} for i in range(len(batch))]

    def _response(self, request: Any, outcome: Arrays | Exception) -> Any:
        if isinstance(outcome, Exception):
            return self._failed(outcome)
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [_tensor(name, array) for name, array in outcome.items() if name in wanted]
        )

    # Generators

    def _stream(self, requests: list[Any], generator: Generator) -> None:
        senders = [request.get_response_sender() for request in requests]
        groups: dict[Any, list[tuple[Caller, Arrays]]] = {}
        for request, sender in zip(requests, senders, strict=True):
            caller = Caller(sender, self._repository, request.request_id())
            if caller.has_gone() or _is_late(request):
                continue  # given up while it waited
            arrays = self._inputs(request)
            try:
                if any(len(array) != 1 for array in arrays.values()):
                    raise InvalidInput("a streamed request is one item; send further ones apart")
                single = {name: array[0] for name, array in arrays.items()}
                groups.setdefault(generator.key(single), []).append((caller, single))
            except Exception as error:
                sender.send(self._failed(error))
        for members in groups.values():
            self._generate(generator, members)
        for request, sender in zip(requests, senders, strict=True):
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            forget(self._repository, request.request_id())

    def _generate(self, generator: Generator, members: list[tuple[Caller, Arrays]]) -> None:
        callers = [caller for caller, _ in members]
        steps = generator.generate(
            [arrays for _, arrays in members], lambda index: callers[index].has_gone()
        )
        try:
            for index, outputs in steps:
                if not callers[index].has_gone():
                    tensors = [_tensor(name, array[None]) for name, array in outputs.items()]
                    callers[index].sender.send(pb_utils.InferenceResponse(tensors))
        except Exception as error:
            if len(members) > 1 and isinstance(error, InvalidInput):
                # One of them is bad; nothing but progress has been sent, so each may run alone.
                for member in members:
                    self._generate(generator, [member])
                return
            for caller in callers:
                caller.sender.send(self._failed(error))

    # Both

    def _inputs(self, request: Any) -> Arrays:
        arrays: Arrays = {}
        for spec in self._signature.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
            if tensor is not None:
                arrays[spec.name] = tensor.as_numpy()
        return arrays

    def _failed(self, error: Exception) -> Any:
        if isinstance(error, InvalidInput):
            # The prefix sorts the error on streams, which carry no status code.
            return _failure(f"InvalidInput: {error}", pb_utils.TritonError.INVALID_ARG)
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        return _failure(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who gets a stream's responses."""

    sender: Any
    repository: Path
    id: str

    def has_gone(self) -> bool:
        """Tell whether nobody wants them any more."""
        return self.sender.is_cancelled() or is_withdrawn(self.repository, self.id)


def _split(output: np.ndarray | list[np.ndarray], ends: np.ndarray) -> list[np.ndarray]:
    """Return what is each request's, batch first. Raises InvalidInput where the items of one request differ in shape."""
    if isinstance(output, np.ndarray):
        return np.split(output, ends)
    parts = [output[start:end] for start, end in pairwise([0, *ends, len(output)])]
    if any(item.shape != part[0].shape for part in parts for item in part):
        raise InvalidInput("the answers to these items differ in shape; send one item a request")
    return [np.stack(part) for part in parts]


def _is_late(request: Any) -> bool:
    """Tell whether the answer is of no use any more; `deadline` is in ms since the epoch."""
    parameters = json.loads(request.parameters() or "{}")
    return time.time() * 1000 > parameters.get("deadline", float("inf"))


def _tensor(name: str, array: np.ndarray) -> Any:
    return pb_utils.Tensor(name, np.ascontiguousarray(array))


def _failure(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
