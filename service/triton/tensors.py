"""Requests and answers of Triton as NumPy arrays: raw bytes in and out, one copy each way."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

Array = np.ndarray[Any, Any]

_DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP32": np.dtype(np.float32),
}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}


def request(model: str, inputs: Mapping[str, Array]) -> pb.ModelInferRequest:
    """Return the request that carries `inputs`; arrays of objects hold `str` or `bytes`."""
    message = pb.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        tensor = message.inputs.add(name=name, shape=array.shape)
        if array.dtype == np.object_:
            tensor.datatype = "BYTES"
            values = (v.encode() if isinstance(v, str) else bytes(v) for v in array.reshape(-1))
            raw = b"".join(struct.pack("<I", len(v)) + v for v in values)
        else:
            tensor.datatype = _DATATYPES[array.dtype]
            raw = np.ascontiguousarray(array).tobytes()
        message.raw_input_contents.append(raw)
    return message


def outputs(answer: pb.ModelInferResponse) -> dict[str, Array]:
    """Return the tensors of an answer, read-only views of its bytes; strings come as `bytes`."""
    arrays: dict[str, Array] = {}
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        array: Array
        if tensor.datatype == "BYTES":
            values, offset = [], 0
            while offset < len(raw):
                (length,) = struct.unpack_from("<I", raw, offset)
                values.append(raw[offset + 4 : offset + 4 + length])
                offset += 4 + length
            array = np.array(values, dtype=object)
        else:
            array = np.frombuffer(raw, dtype=_DTYPES[tensor.datatype])
        arrays[tensor.name] = array.reshape(tuple(tensor.shape))
    return arrays
