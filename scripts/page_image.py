"""Take docs/img/page.png and page-dark.png: the page of `bge serve`, with a question ranked, in a real Chromium.

python scripts/page_image.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from bge_integrations import load_encoder
from bge_integrations.server import background

IMAGES = Path(__file__).parent.parent / "docs" / "img"
SCHEMES = {"light": "page.png", "dark": "page-dark.png"}
QUESTION = "play songs"
PASSAGES = (
    "A mail server that delivers email over SMTP.",
    "A player for music files in MP3 and FLAC formats.",
    "A text editor for the terminal with syntax highlighting.",
)
FILL = """
const type = (field, text) => { field.value = text; field.dispatchEvent(new Event("input", {bubbles: true})); };
type(document.getElementById("query"), arguments[0]);
const fields = () => [...document.querySelectorAll("#passages textarea")];
while (fields().length < arguments[1].length) document.getElementById("add").click();
while (fields().length > arguments[1].length) document.querySelector("#passages button").click();
fields().forEach((field, i) => type(field, arguments[1][i]));
document.getElementById("go").click();
"""


def take(driver: webdriver.Chrome, url: str, image: Path) -> None:
    """Ask the page and save what it shows."""
    driver.get(url)
    WebDriverWait(driver, 60).until(
        lambda d: d.execute_script("return document.querySelectorAll('#facts li').length > 1")
    )
    driver.execute_script(FILL, QUESTION, PASSAGES)
    WebDriverWait(driver, 60).until(lambda d: d.execute_script("return !document.getElementById('results').hidden"))
    driver.execute_script("scrollTo(0, 0); document.activeElement.blur()")
    driver.save_screenshot(str(image))


def main() -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    with load_encoder("demo", show_progress=False) as encoder, background(encoder) as url:
        driver.set_window_size(1000, 1006)
        encoder.encode(["a text"], role="document")  # so that the page finds the model ready
        for scheme, name in SCHEMES.items():
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
            take(driver, url, IMAGES / name)
    driver.quit()


if __name__ == "__main__":
    main()
