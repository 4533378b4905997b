"""Laws about the site: it is built without a warning, every link leads somewhere, a browser shows it whole."""

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from attrobust import paths
from attrobust.notebook import reproduce
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]

BOOKS = [f"notebooks/{path.stem}.html" for path in reproduce.numbered()]
SHOWN = ["index.html", "docs/claims.html", "reference/attributions.html", "figures/benchmarks/table.html"]
SHOWN += ["notebooks/01_fragile_attributions.html", "notebooks/02_two_curvatures.html"]
SHOWN += ["docs/slider.html"] * (paths.root / "docs" / "slider.md").is_file()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make site` builds it, in another folder."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "source").mkdir()
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(paths.root / "docs" / "site")]
    done = subprocess.run(
        [*command, "-d", folder / "trees", folder / "source", folder / "html"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "html"


@pytest.fixture(scope="module")
def address(site):
    """The site behind a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Page(HTMLParser):
    """What a page defines and what it points to."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.targets, self.silent = set(), set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        self.targets |= {given[key] for key in ("href", "src") if given.get(key)}
        self.silent += tag == "img" and not (given.get("alt") or "").strip()


def broken(site):
    """Every internal link without its file or its anchor, and every page with a picture that says nothing."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) > 50
    found = [f"{path.name}: picture without text" for path, page in pages.items() if page.silent]
    for path, page in pages.items():
        for target in page.targets:
            link = urlsplit(target)
            if link.scheme or link.netloc or target == "#":
                continue
            file = (path.parent / unquote(link.path)).resolve() if link.path else path
            anchor = unquote(link.fragment)
            if not file.is_file() or (anchor and file in pages and anchor not in pages[file].ids):
                found.append(f"{path.relative_to(site)}: {target}")
    return found


def test_every_internal_link_leads_to_a_file_and_an_anchor_and_a_broken_one_is_noticed(site, tmp_path):
    assert broken(site) == []
    copy = shutil.copytree(site, tmp_path / "copy")
    page = copy / "docs" / "claims.html"
    text = page.read_text()
    assert 'href="../notebooks/03_sgd_flattens.html"' in text
    for fault in ("../notebooks/03_sgd_flatten.html", "../notebooks/03_sgd_flattens.html#no-such-section"):
        page.write_text(text.replace('href="../notebooks/03_sgd_flattens.html"', f'href="{fault}"', 1))
        assert broken(copy) == [f"docs/claims.html: {fault}"]


def test_every_notebook_and_every_room_of_the_library_has_its_page(site):
    assert all((site / book).is_file() for book in BOOKS)
    package = paths.root / "lib" / "attrobust"
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    pages = {path.stem for path in (site / "reference").glob("*.html")}
    assert pages == {room for room in rooms if not room.startswith("_")} | {"index"}
    shown = (site / "reference" / "attacks.html").read_text()
    assert 'id="attrobust.attacks.auto"' in shown
    assert "&gt;&gt;&gt;" in (site / "reference" / "attributions.html").read_text()


def opened(browser, url, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.get_log("performance"), browser.get_log("browser")  # what the browser did of itself, or an earlier page
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(url)
    ready = (
        "return document.readyState == 'complete' && (!window.MathJax || !MathJax.startup || !MathJax.startup.promise"
    )
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(f"{ready} || !!MathJax.version)"))
    browser.execute_async_script(
        "const done = arguments[0];"
        "Promise.resolve(window.MathJax && MathJax.startup && MathJax.startup.promise).then(() => done())"
    )


def quiet_and_alone(browser, address):
    """No error on the console, and no request that leaves the machine, since the last look."""
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "ERROR")] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked
    assert [url for url in asked if not url.startswith((f"{address}/", "file:///", "data:", "blob:", "chrome"))] == []


#: What of an article lies beyond the window and cannot be scrolled to; a sheet of frames shows one at a time.
BEYOND = """
const within = part => {
  const place = part.getBoundingClientRect()
  return place.left >= -1 && place.right <= window.innerWidth + 1
}
const kept = part => {
  for (let around = part.parentElement; around.tagName !== 'ARTICLE'; around = around.parentElement) {
    const style = getComputedStyle(around)
    if (style.display === 'inline' || style.overflowX === 'visible' || !within(around)) continue
    return ['auto', 'scroll'].includes(style.overflowX)
  }
  return false
}
const parts = [...document.querySelectorAll('article *:not(.walk-panels img, mjx-assistive-mml *)')]
const shown = parts.filter(part => part.getBoundingClientRect().width)
return shown.filter(p => !within(p) && !kept(p)).map(p => `${p.tagName} ${p.textContent.slice(0, 40)}`)
"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", SHOWN)
def test_a_page_shows_its_figures_and_formulas_at_the_width_of_a_desk_and_of_a_phone(browser, address, page, width):
    opened(browser, f"{address}/{page}", width)
    quiet_and_alone(browser, address)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.execute_script("return parseFloat(getComputedStyle(document.body).fontSize)") >= 14
    pictures = browser.execute_script(
        "document.querySelectorAll('img[loading]').forEach(i => i.loading = 'eager');"
        "return Promise.all([...document.images].map(i => i.decode().catch(() => 0)))"
        ".then(() => [...document.images].map(i => [i.naturalWidth, i.alt]))"
    )
    assert all(natural > 0 and alt for natural, alt in pictures)
    drawn, wanted, failed = browser.execute_script(
        "return ['mjx-container svg', 'span.math, div.math', 'mjx-merror, [data-mml-node=merror]']"
        ".map(what => document.querySelectorAll(what).length)"
    )
    assert drawn >= wanted
    assert failed == 0
    assert browser.execute_script(BEYOND) == []
    # Outside code no TeX is left as text.
    prose = browser.execute_script(
        "const copy = document.querySelector('article').cloneNode(true);"
        "copy.querySelectorAll('pre, code, mjx-container').forEach(part => part.remove()); return copy.textContent"
    )
    assert "$$" not in prose
    assert "\\frac" not in prose
    if page == BOOKS[1]:
        assert drawn > 100
    if page in BOOKS:
        assert len(pictures) > len(list((paths.figures / page[10:-5]).glob("*.png")))


@pytest.mark.parametrize("served", [True, False])
def test_search_finds_a_term_from_a_server_and_from_a_folder(browser, address, site, served):
    start = address if served else site.as_uri()
    opened(browser, f"{start}/search.html?q=rollout", 1280)
    found = "return [...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))"
    WebDriverWait(browser, 30).until(lambda b: any("06_softmax" in link for link in b.execute_script(found)))
    quiet_and_alone(browser, address)
