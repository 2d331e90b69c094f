"""What is sent to a host and how its answer is read, per protocol."""

from __future__ import annotations

from .openai import OPENAI
from .space import SPACE
from .wire import Answer, Request, WireProtocol

__all__ = ["PROTOCOLS", "Answer", "Request", "WireProtocol"]

PROTOCOLS = {protocol.name: protocol for protocol in (OPENAI, SPACE)}
