"""The page, in a real Chromium: what it shows, by keyboard, at phone width, in the dark."""

import os
import re
import shutil
import threading
from pathlib import Path

import pytest

import programs
from bge_integrations.errors import MissingExtraError
from bge_integrations.load import load_reranker
from bge_integrations.server import Limits, background
from bge_integrations.server.responses import content_policy
from server_processes import http
from serving import ServedEncoder

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ARTEFACTS = Path(__file__).parent.parent / "artefacts"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::bge_integrations.errors.TruncationWarning")]
browser_only = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver on this machine")


@pytest.fixture(scope="module")
def encoder(demo):
    """The bundled model where it can run, so that the screenshots mean something; else a stand-in."""
    try:
        demo.encode(["hello"], role="document")
    except MissingExtraError:
        with ServedEncoder() as encoder:
            yield encoder
    else:
        yield demo


@pytest.fixture(scope="module")
def url(encoder):
    with background(encoder) as url:
        yield url


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, url):
    driver.set_window_size(1200, 900)
    scheme(driver, "light")
    driver.get(url)
    wait(driver, "return document.querySelectorAll('#facts li').length > 1")
    return driver


def wait(driver, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 60, poll_frequency=0.05).until(lambda d: d.execute_script(script))


def scheme(driver, name):
    media = [{"name": "prefers-color-scheme", "value": name}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})


def phone(driver):
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def rank(driver):
    driver.execute_script("document.getElementById('results').hidden = true")
    driver.find_element("id", "go").click()
    wait(driver, "return !document.getElementById('go').disabled")
    assert driver.execute_script("return document.getElementById('alert').textContent") == ""


def texts(driver, selector):
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
    )


def keep(driver, name):
    """Leave a screenshot of the whole page for people to look at."""
    import base64

    ARTEFACTS.mkdir(exist_ok=True)
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    (ARTEFACTS / name).write_bytes(base64.b64decode(shot["data"]))


@browser_only
def test_ranking_with_and_without_the_instruction_is_the_servers_own(page, url):
    rank(page)
    query = page.execute_script("return document.getElementById('query').value")
    passages = page.execute_script("return passages().map((p) => p.text)")
    vectors = http.post(f"{url}/embed", json={"texts": passages}).json()["embeddings"]
    for side, is_query in (("with", True), ("without", False)):
        body = {"texts": [query], "is_query": is_query}
        asked = http.post(f"{url}/embed", json=body).json()["embeddings"][0]
        scores = [sum(x * y for x, y in zip(asked, row, strict=True)) for row in vectors]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        shown = texts(page, f"#{side} .text")
        assert shown == [f"{i + 1} · {passages[i]}" for i in order]
        # The movement against the other ranking stands behind the score.
        assert [text[:6].rstrip("▲▼") for text in texts(page, f"#{side} .score")] == [
            f"{scores[i]:.3f}"[:6] for i in order
        ]
    keep(page, "page-light.png")


@browser_only
def test_the_list_before_and_after_reranking_is_the_servers_own(driver, encoder):
    reranker = load_reranker("demo") if encoder.card.id == "demo" else None
    if reranker is None:
        pytest.skip("the bundled models cannot run here")
    with reranker, background(encoder, reranker=reranker) as url:
        driver.get(url)
        wait(driver, "return !document.getElementById('reranked-section').hidden")
        rank(driver)
        query, passages = driver.execute_script(
            "return [document.getElementById('query').value, passages().map((p) => p.text)]"
        )
        assert texts(driver, "#before .text") == texts(driver, "#with .text")
        ranks = reranker.rank(query, passages)
        assert texts(driver, "#after .text") == [f"{i + 1} · {passages[i]}" for i, _ in ranks]
        assert [text[:5] for text in texts(driver, "#after .score")] == [f"{score:.3f}" for _, score in ranks]
        place = {text: at for at, text in enumerate(texts(driver, "#before .text"))}
        moved = [place[text] - at for at, text in enumerate(texts(driver, "#after .text"))]
        assert [text[5:] for text in texts(driver, "#after .score")] == [
            f"{'▲' if by > 0 else '▼'}{abs(by)}" if by else "" for by in moved
        ]
        assert f"reranked, passage {ranks[0].position + 1}." in texts(driver, "#said")[0]
        body = re.findall(r"/rerank .*?-d '(.*?)'$", texts(driver, "#curl")[0], re.MULTILINE | re.DOTALL)[0]
        headers = {"content-type": "application/json"}
        rows = http.post(f"{url}/rerank", content=body, headers=headers).json()
        assert [row["index"] for row in rows] == [one.position for one in ranks]
        assert driver.execute_script(CONTRAST) == []
        keep(driver, "page-reranked.png")
        phone(driver)
        try:
            assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
        finally:
            driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@browser_only
def test_without_a_reranker_the_page_has_no_such_list(page):
    rank(page)
    assert page.execute_script("return document.getElementById('reranked-section').hidden")
    assert "/rerank" not in texts(page, "#curl")[0]


@browser_only
def test_the_heat_map_covers_all_pairs(page):
    rank(page)
    cells = [float(cell) for cell in texts(page, "#heat tbody td")]
    assert len(cells) == 6 * 6
    assert [cells[7 * i] for i in range(6)] == [1.0] * 6
    assert all(abs(cells[6 * i + j] - cells[6 * j + i]) < 1e-9 for i in range(6) for j in range(6))
    assert texts(page, "#heat thead th") == ["Q+", "Q", "1", "2", "3", "4"]


@browser_only
def test_tokens_are_counted_and_the_cut_is_marked(page, encoder):
    limit = encoder.card.max_tokens
    long = "word " * (limit + 50)
    page.execute_script("addPassage(arguments[0])", long)
    rank(page)
    count, lost = texts(page, ".passage .count")[-1], texts(page, ".passage .lost mark")[-1]
    assert re.fullmatch(rf"{limit + 52} of {limit} tokens: the marked end is not read", count)
    assert lost.replace("…", "").split() == ["word"] * len(lost.replace("…", "").split())
    assert texts(page, ".passage .lost:not([hidden])") != []
    assert all("marked" not in text for text in texts(page, ".passage .count")[:-1])
    assert "instruction included" in texts(page, "#query-count")[0]
    keep(page, "page-cut.png")


@browser_only
def test_the_calls_shown_do_what_the_page_did(page, url, encoder):
    rank(page)
    curl, python = texts(page, "#curl")[0], texts(page, "#python")[0]
    bodies = re.findall(r"-d '(.*)'$", curl, re.MULTILINE)
    assert [
        http.post(f"{url}/embed", content=body, headers={"content-type": "application/json"}).status_code
        for body in bodies
    ] == [200, 200]
    assert f'base_url="{url}"' in python
    if encoder.card.id == "demo":  # the stand-in has other dimensions than the model whose name it bears
        printed = [float(line) for line in run_python(python)]
        scores = [float(text[:5]) for text in texts(page, "#with .score")]
        assert sorted(printed, reverse=True) == pytest.approx(scores, abs=1e-2)


def run_python(code, **environment):
    """Run what the page shows, as a reader would; return the lines that it prints."""
    pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    done = programs.run(code, environment={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@browser_only
def test_by_keyboard_alone(page):
    from selenium.webdriver.common.keys import Keys

    def focused():
        return page.switch_to.active_element

    query = page.find_element("id", "query")
    query.click()
    query.send_keys(Keys.CONTROL, "a", Keys.NULL, "another query")
    query.send_keys(Keys.TAB)
    assert focused().get_attribute("aria-label") == "Passage 1"
    focused().send_keys(Keys.TAB)
    assert focused().get_attribute("aria-label") == "Remove passage 1"
    focused().send_keys(Keys.ENTER)
    assert focused().get_attribute("aria-label") == "Passage 1"
    assert len(texts(page, ".passage")) == 3
    focused().send_keys(Keys.CONTROL, Keys.ENTER)
    wait(page, "return !document.getElementById('results').hidden")
    assert len(texts(page, "#with li")) == 3
    assert "is first" in texts(page, "#said")[0]


@browser_only
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_at_phone_width_nothing_sticks_out(page, colours):
    phone(page)
    scheme(page, colours)
    try:
        page.execute_script("addPassage('w'.repeat(300))")
        rank(page)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        keep(page, f"page-phone-{colours}.png")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# Every element with text of its own whose contrast with what lies behind it is under WCAG's 4.5.
CONTRAST = """
const linear = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
function rgb(colour) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return a ? [r, g, b] : null;
}
function ground(element) {
  for (; element; element = element.parentElement) {
    const colour = rgb(getComputedStyle(element).backgroundColor);
    if (colour) return colour;
  }
  return [255, 255, 255];
}
const spoken = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
return [...document.querySelectorAll('body *')]
  .filter((e) => e.offsetParent && !e.closest('.sr') && spoken(e))
  .map((e) => [light(rgb(getComputedStyle(e).color)), light(ground(e)), e.tagName + e.className, e.textContent])
  .map(([a, b, name, text]) => [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), name, text.slice(0, 30)])
  .filter(([ratio]) => ratio < 4.5);
"""


@browser_only
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_every_text_has_contrast_enough_to_read(page, colours):
    scheme(page, colours)
    page.execute_script("addPassage('word '.repeat(600))")
    rank(page)
    assert page.execute_script(CONTRAST) == []
    keep(page, f"page-{colours}.png")


@browser_only
def test_every_control_has_a_name(page):
    rank(page)
    unnamed = page.execute_script(
        "return [...document.querySelectorAll('input, textarea, button, a, pre, [tabindex]')]"
        ".filter((e) => !(e.labels && e.labels.length) && !e.getAttribute('aria-label')"
        " && !e.getAttribute('aria-labelledby') && !e.textContent.trim()).map((e) => e.outerHTML)"
    )
    assert unnamed == []


@browser_only
def test_a_mistake_is_said_on_the_page(page):
    page.execute_script("document.getElementById('query').value = ' '")
    page.find_element("id", "go").click()
    wait(page, "return !document.getElementById('alert').hidden")
    assert texts(page, "#alert") == ["Type a query first."]


@browser_only
def test_what_the_server_refuses_is_said_on_the_page(driver, encoder):
    with background(encoder, limits=Limits(items=3)) as url:
        driver.get(url)
        wait(driver, "return document.querySelectorAll('#facts li').length > 1")
        driver.find_element("id", "go").click()
        wait(driver, "return !document.getElementById('alert').hidden")
        assert re.search(r"5 texts in one request are too many: at most 3 \(422\)", texts(driver, "#alert")[0])


@browser_only
def test_too_much_text_is_said_as_such(driver, encoder):
    with background(encoder, limits=Limits(body_bytes=2000)) as url:
        driver.get(url)
        wait(driver, "return document.querySelectorAll('#facts li').length > 1")
        driver.execute_script("addPassage('word '.repeat(1000))")
        driver.find_element("id", "go").click()
        wait(driver, "return !document.getElementById('alert').hidden")
        assert texts(driver, "#alert")[0].startswith("Too much text for one request: shorten")


@browser_only
def test_the_state_of_the_model_follows_the_server(driver):
    gate = threading.Event()
    with ServedEncoder(gate) as encoder, background(encoder) as url:
        driver.get(url)
        wait(driver, "return document.querySelector('#facts li.waiting')")
        assert texts(driver, "#facts li")[0] == "the model is loading"
        gate.set()
        wait(driver, "return document.querySelector('#facts li.ready')")


@browser_only
def test_texts_run_in_their_own_direction(page):
    page.execute_script("addPassage('שלום עולם')")
    rank(page)
    fields = page.execute_script(
        "return [...document.querySelectorAll('textarea, .text, tbody th, .lost')].map((e) => e.dir)"
    )
    assert set(fields) == {"auto"}


@browser_only
def test_what_a_user_types_is_text_and_never_markup(page):
    page.execute_script("addPassage('<img src=x onerror=\"document.title=1\"><b>bold</b>')")
    rank(page)
    assert page.execute_script("return document.querySelectorAll('main img, main b').length") == 0
    assert page.title == "BGE playground"


@browser_only
def test_a_locked_server_asks_for_its_key(driver, encoder):
    with background(encoder, api_keys=["k-one"]) as url:
        driver.get(url)
        wait(driver, "return !document.getElementById('key-row').hidden")
        driver.find_element("id", "go").click()
        wait(driver, "return !document.getElementById('alert').hidden")
        assert "API key" in texts(driver, "#alert")[0]
        driver.find_element("id", "key").send_keys("k-one")
        rank(driver)
        assert len(texts(driver, "#with li")) == 4
        assert "k-one" not in texts(driver, "#curl")[0] + texts(driver, "#python")[0]
        if encoder.card.id == "demo":
            assert len(run_python(texts(driver, "#python")[0], BGE_API_KEY="k-one")) == 4


@browser_only
def test_it_asks_nobody_else_and_nothing_goes_wrong_in_the_console(driver, url):
    import json

    driver.get_log("performance")
    driver.get_log("browser")
    for path in ("", "docs"):
        driver.get(f"{url}/{path}")
        wait(driver, "return document.querySelectorAll('#facts li, article').length > 1")
    driver.get(url)
    wait(driver, "return document.querySelectorAll('#facts li').length > 1")
    rank(driver)
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert f"{url}/embed" in asked
    assert [address for address in asked if not address.startswith((url, "data:"))] == []
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


@browser_only
def test_the_docs_list_every_operation(driver, url):
    driver.get(f"{url}/docs")
    wait(driver, "return document.querySelectorAll('article').length")
    document = http.get(f"{url}/openapi.json").json()
    assert set(texts(driver, "article h2 code")) == set(document["paths"])
    keep(driver, "docs.png")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_page_is_one_file_that_may_speak_to_its_server_only(url, path):
    answer = http.get(f"{url}{path}")
    assert answer.headers["content-security-policy"] == content_policy(answer.text)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", answer.text)
    assert answer.text.count("<script>") == answer.text.count("<style>") == 1
