"""The text of a file: plain text as it is, HTML as Markdown so that its headings stay, PDF page after page."""

from __future__ import annotations

import io
import logging

from ..errors import MissingExtraError
from ..extras import require
from .chunking import PAGE

__all__ = ["html_text", "pdf_text", "plain_text"]

_BOM = b"\xef\xbb\xbf"
_NO_TEXT = ("script", "style", "template", "noscript", "nav", "head")


def plain_text(raw: bytes) -> str:
    """Return the text of a file in UTF-8, without a byte order mark.

    Raises:
        ValueError: says why it is not such a text.
    """
    if b"\0" in raw:
        raise ValueError("not text (it holds NUL bytes)")
    try:
        return raw.removeprefix(_BOM).decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def html_text(raw: bytes) -> str:
    """Return HTML as Markdown, without navigation, scripts and styles; the charset is the one that the file names.

    Raises:
        MissingExtraError: markdownify is not installed.
    """
    markdownify = require("markdownify", extra="documents", purpose="HTML")
    soup = require("bs4", extra="documents", purpose="HTML").BeautifulSoup(raw, "html.parser")
    for element in soup(_NO_TEXT):
        element.decompose()
    return str(markdownify.MarkdownConverter(heading_style="ATX", strip=["img"]).convert_soup(soup)).strip() + "\n"


def pdf_text(raw: bytes) -> str:
    """Return the text of a PDF, with a form feed between two pages.

    Raises:
        MissingExtraError: pypdf is not installed.
        ValueError: says why it cannot be read: encrypted, damaged, or pictures of text alone.
    """
    pypdf = require("pypdf", extra="documents", purpose="PDF")
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity in a file
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("encrypted: it needs a password")
        pages = [page.extract_text().replace(PAGE, "\n").replace("\0", "") for page in reader.pages]
    except (ValueError, MissingExtraError):
        raise
    except Exception as error:  # pypdf raises what its parser stumbles over
        raise ValueError(f"cannot be read as PDF: {type(error).__name__}: {error}") from error
    if not any(page.strip() for page in pages):
        raise ValueError("a PDF without text, such as a scan: run OCR first")
    return PAGE.join(pages)
