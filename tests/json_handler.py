"""A handler of HTTP requests that answers with JSON, for the tests' hosts."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any


class JSONHandler(BaseHTTPRequestHandler):
    """Writes answers, and no log."""

    def reply(self, status: int, answer: Any, **headers: str) -> None:
        """Send JSON, or bytes as they are; ``_`` in a header's name stands for ``-``."""
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Print nothing."""
