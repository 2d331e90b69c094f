"""What is sent to a host and how its answer is read, per protocol."""

from __future__ import annotations

from .openai import OPENAI
from .output_wire import OutputProtocol
from .space import SPACE
from .sparse import OUTPUT_PROTOCOLS
from .wire import Answer, Request, WireProtocol

__all__ = ["OUTPUT_PROTOCOLS", "PROTOCOLS", "Answer", "OutputProtocol", "Request", "WireProtocol"]

PROTOCOLS = {protocol.name: protocol for protocol in (OPENAI, SPACE)}
