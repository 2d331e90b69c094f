"""The pages: files of their own, sent with a policy that lets them speak to this server and to nobody else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import FastAPI, Response

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def add_pages(app: FastAPI) -> None:
    """Give the app the playground at ``/`` and the API's description at ``/docs``."""

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return page_response("page.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page_response("docs.html")


@cache
def page_response(name: str) -> Response:
    """Return a page of this package."""
    text = files(__package__).joinpath(name).read_text("utf-8")
    headers = {
        "content-security-policy": content_policy(text),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")


def content_policy(page: str) -> str:
    """Allow the page's own script and style, by their hashes, and requests to where it came from."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    own = "; ".join(f"{kind}-src {' '.join(digests)}" for kind, digests in hashes.items())
    return f"default-src 'none'; {own}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
