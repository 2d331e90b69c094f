"""The site as a reader has it: built strictly, opened from a folder, searched in a real Chromium, read on a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bge_integrations import PROVIDERS

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

# What users type, and the page that should be among the first three.
SEARCHED = {
    "reverse proxy": "how-to/deploy", "gunicorn": "how-to/troubleshooting", "systemd": "how-to/deploy",
    "Windows": "how-to/troubleshooting", "Docker": "how-to/deploy", "Kubernetes": "how-to/deploy",
    "Jupyter": "how-to/notebooks", "persist": "how-to/cache", "cost": "how-to/bulk",
    "similarity threshold": "explanation/scores", "proxy": "how-to/deploy", "certificate": "how-to/hosts",
    "offline": "how-to/air-gapped", "air-gapped": "how-to/air-gapped", "timeout": "how-to/rate-limits",
    "rate limit": "how-to/rate-limits", "truncation": "explanation/truncation", "GPU": "how-to/speed",
    "memory": "how-to/bulk", "cache": "how-to/cache", "langchain": "langchain", "llama_index": "llama_index",
    "chroma": "how-to/vector-stores", "milvus": "how-to/hybrid", "fine-tuned": "how-to/own-models",
    "hybrid search": "how-to/hybrid", "reranker": "how-to/rerank", "chunking": "how-to/bulk", "PDF": "how-to/bulk",
    "openai": "providers/openai", "ollama": "providers/ollama", "prometheus": "how-to/deploy",
    "shell completion": "reference/cli", "migrate": "migrate/index", "spark": "how-to/ray",
    "qdrant": "how-to/vector-stores", "duplicates": "how-to/bulk", "Apple": "how-to/speed", "mps": "how-to/speed",
    "fine-tune": "how-to/own-models", "cosine": "explanation/scores", "normalize": "explanation/scores",
    "dimension": "how-to/choose-model", "batch size": "how-to/speed", "async": "langchain",
    "LangGraph": "how-to/clients", "OpenAI compatible": "how-to/hosts", "Azure": "how-to/hosts", "TEI": "providers/tei",
    "vLLM": "providers/vllm", "Elasticsearch": "how-to/vector-stores", "ONNX": "how-to/speed",
    "quantization": "how-to/smaller-vectors", "int8": "how-to/smaller-vectors", "Matryoshka": "how-to/choose-model",
    "rerank": "how-to/rerank", "hybrid": "how-to/hybrid", "sparse": "how-to/hybrid", "ColBERT": "how-to/hybrid",
    "pgvector": "how-to/vector-stores", "retry": "how-to/rate-limits", "429": "how-to/rate-limits",
    "API key": "how-to/hosts", "CUDA": "how-to/speed", "threads": "how-to/speed", "license": "index",
    "multilingual": "how-to/choose-model",
    "chunk size": "how-to/bulk", "streaming": "how-to/speed", "pickle": "how-to/vector-stores",
}  # fmt: skip

FIRST_THREE = """
const pages = [...document.querySelectorAll(".md-search-result__item > a")].map(a => a.href.replace(/[?#].*/, ""));
return [...new Set(pages)].slice(0, 3);
"""

# What sticks out of a phone's screen: the page itself, and the parts of it that nothing scrolls or hides.
WIDE = """
if (document.documentElement.scrollWidth <= 390) return [];
const wide = [...document.querySelectorAll("article *")].filter(e => e.getBoundingClientRect().right > 390);
return ["wider than the screen", ...wide.map(e => e.textContent.trim().slice(0, 60)).slice(0, 9)];
"""

PICTURES = """
return [...document.querySelectorAll(".md-content img")].filter(img => img.offsetParent !== null)
  .map(img => [img.src.startsWith("data:") ? "plot" : img.src.replace(/.*[/]|#.*/g, ""), getComputedStyle(img).filter]);
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: the site is not built")
    pytest.importorskip("material", reason="mkdocs-material is not installed: the site is not built")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_nobody(site):
    built = list(site.rglob("*.html"))
    assert len(built) > len(PROVIDERS) + 30
    asked = re.compile(r'(?:<(?:script|img|iframe)[^>]* src|<link[^>]* href)="(?:https?:)?//')
    assert not [page.name for page in built if asked.search(page.read_text("utf-8"))]


@pytest.mark.slow
def test_every_notebook_is_rendered_with_what_it_printed(site):
    pages = {path.stem: path.read_text("utf-8") for path in (site / "notebooks").glob("*.html")}
    assert pages.keys() == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert pages["03_what_the_instruction_does"].count("data:image/png;base64,") == 3
    for name, page in pages.items():
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))["cells"]
        printed = [output["text"][0] for cell in cells for output in cell.get("outputs", []) if "text" in output]
        assert printed
        shown = html.unescape(re.sub(r"<[^>]+>", "", page))
        assert all(line.rstrip() in shown for line in printed), name


ARTICLE = re.compile(r'(?<=<article class="md-content__inner md-typeset">).*(?=</article>)', re.DOTALL)


@pytest.fixture(scope="module")
def joined(site):
    """For each folder a page with the articles of all its pages: a browser takes its time for each page."""
    made = []
    for folder in sorted({page.parent for page in site.rglob("*.html")}):
        pages = [page.read_text("utf-8") for page in sorted(folder.glob("*.html"))]
        whole = "\n".join(ARTICLE.search(page)[0] for page in pages)
        made.append(folder / "joined.htm")
        made[-1].write_text(ARTICLE.sub(lambda _, whole=whole: whole, pages[-1]), "utf-8")  # the first may be 404.html
    return made


@pytest.fixture(scope="module")
def driver():
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its driver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.mark.slow
def test_what_users_type_finds_its_page(site, driver):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    driver.set_window_size(1280, 900)
    driver.get((site / "index.html").as_uri())  # from a folder
    box = driver.find_element(By.CSS_SELECTOR, ".md-search__input")
    box.click()
    missed = {}
    for words, page in SEARCHED.items():
        wanted = (site / f"{page}.html").as_uri()
        box.clear()
        WebDriverWait(driver, 5, 0.1).until(lambda driver: driver.execute_script(FIRST_THREE) == [])
        driver.execute_cdp_cmd("Input.insertText", {"text": words[:-1]})  # pasted: each key starts a search
        box.send_keys(words[-1])
        try:
            WebDriverWait(driver, 5, 0.1).until(
                lambda driver, wanted=wanted: wanted in driver.execute_script(FIRST_THREE)
            )
        except Exception:  # noqa: BLE001 - TimeoutException of an optional package
            missed[words] = driver.execute_script(FIRST_THREE)
    assert missed == {}


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone(site, joined, driver):
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    wide = {}
    for page in joined:
        driver.get(page.as_uri())
        wide[page.parent.name] = driver.execute_script(WIDE)
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert {folder: parts for folder, parts in wide.items() if parts} == {}


@pytest.mark.slow
def test_in_the_dark_no_picture_shines(site, joined, driver):
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get((site / "index.html").as_uri())
    driver.execute_script("localStorage.clear()")
    shown = []
    for page in joined:
        if "<img" in page.read_text("utf-8"):
            driver.get(page.as_uri())
            shown += driver.execute_script(PICTURES)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert ["page-dark.png", "none"] in shown
    assert [name for name, drawn in shown if drawn == "none" and "dark" not in name and name != "demo.svg"] == []
