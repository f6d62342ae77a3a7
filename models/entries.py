"""Reading the entries of a Triton model repository, without torch."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as config_pb

from service.triton.cards import Card

CONFIG = "config.pbtxt"


class InvalidEntry(ValueError):
    """A repository entry without a readable configuration or card."""


def read_card(entry: Path) -> Card:
    """Return the card in a `config.pbtxt`. Raises InvalidEntry with what is wrong."""
    try:
        parsed = text_format.Parse(entry.read_text(), config_pb.ModelConfig())
        return Card.model_validate_json(parsed.parameters["card"].string_value)
    except (OSError, UnicodeDecodeError, text_format.ParseError, ValueError) as error:
        raise InvalidEntry(f"{entry}: {error}") from error
