"""The built pages in a real browser, the network cut off: nothing clipped, no error, figures that move.

They need Playwright and a Chromium of the system; where one is missing, they are skipped.
"""

import functools
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import chapters
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.filterwarnings("default"),
]
ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "stored" / "_build" / "html"
SOURCES = [p.relative_to(ROOT / "book") for p in (ROOT / "book").rglob("*") if p.suffix in {".md", ".ipynb"}]
PAGES = sorted(p.with_suffix("").as_posix() for p in SOURCES if p.stem != "scorecard")
TALLEST = 22_000  # pixels: what is longer is two pages

CLIPPED = """() => [...document.querySelectorAll('article pre, article .cell_output > *, article table')].filter(e => {
    const box = e.closest('.lrc-table, .scroll') ?? e;
    return e.offsetParent && box.scrollWidth > box.clientWidth + 1;
}).map(e => e.textContent.slice(0, 60))"""
LOOK = """e => [...e.querySelectorAll('canvas')].map(c => c.toDataURL()).join()
    + [...e.querySelectorAll('img')].map(i => i.src).join()"""


def newest(*folders):
    return max(
        p.stat().st_mtime
        for folder in folders
        for p in folder.rglob("*")
        if p.is_file() and ".ruff_cache" not in p.parts
    )


@pytest.fixture(scope="module")
def site():
    """The address of the pages, built from the stored outputs where they are missing or old."""
    if not (HTML / "index.html").exists() or newest(ROOT / "book") > newest(HTML):
        folder = chapters.stage(ROOT / "_build" / "stored").parent
        pytest.importorskip("jupyter_book", reason="needs the extra `book`")
        build = [Path(sys.executable).with_name("jupyter-book"), "build", folder, "--all", "-q"]
        subprocess.run(build, check=True, capture_output=True)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser, site):
    """An empty page; what goes wrong in it, and where it reaches out to, is in its `wrong`."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, wrong = context.new_page(), []
    page.wrong = wrong
    page.on("console", lambda m: wrong.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))

    def inside(route):
        if route.request.url.startswith((site, "data:")):
            return route.continue_()
        wrong.append(f"reaches out to {route.request.url}")
        return route.abort()

    page.route("**/*", inside)
    yield page
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_all_that_is_on_it(page, site, name):
    page.goto(f"{site}/book/{name}.html", wait_until="load")
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate("() => [...document.querySelectorAll('article img')].filter(i => !i.alt).length") == 0
    assert page.evaluate(
        "() => [...document.querySelectorAll('article .cell_output img:not(.lrc-moving img)')].length"
    ) <= page.evaluate("() => [...document.querySelectorAll('article figcaption')].length"), (
        "a figure without a caption"
    )
    for figure in page.query_selector_all(".lrc-moving"):
        sliders, buttons = map(figure.query_selector_all, ("input[type=range]", "button[aria-pressed=false]"))
        for control in sliders + buttons:  # at the start of its slider two choices may look alike
            before = figure.evaluate(LOOK)
            if control.evaluate("e => e.type") == "range":
                control.focus()
                page.keyboard.press("End")
            else:
                control.click()
            assert figure.evaluate(LOOK) != before, f"{control.inner_text() or 'slider'} changes nothing"
    if name != "architectures":  # one table
        assert page.evaluate("() => document.documentElement.scrollHeight") <= TALLEST
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert page.wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "02_robust", "03_clusters", "13_try_it", "claims", "reference/plots"])
def test_a_page_can_be_read_by_all(page, site, name, scheme):
    found = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{site}/book/{name}.html", wait_until="load")
    assert page.evaluate("() => document.documentElement.dataset.theme") == scheme
    page.add_style_tag(content="* { transition: none !important }")  # no contrast is that of a colour on its way
    violations = found.Axe().run(page).response["violations"]
    grave = {(v["id"], v["nodes"][0]["html"][:80]) for v in violations if v["impact"] in {"critical", "serious"}}
    assert grave == set()


def test_search_finds_the_chapter(page, site):
    page.goto(f"{site}/search.html?q=TRADES")
    page.wait_for_selector("#search-results ul.search li a")
    found = [a.get_attribute("href") for a in page.query_selector_all("#search-results ul.search li > a")]
    assert any("05_training" in href for href in found[:5])
