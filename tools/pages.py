"""A Sphinx extension that makes the built pages light and clean: no script that they do not use, and what they lack.

`tools/chapters.py stage` puts it beside the book, `_config.yml` names it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from sphinx.application import Sphinx

DESCRIPTION = (
    "Class rows of linearized classifiers cluster in adversarially trained networks: a NeurIPS 2021 paper "
    "reproduced, tested and explained, with code."
)
UNUSED = [
    r'<script src="[^"]*fontawesome[^"]*/js/[^"]*"></script>',  # its style sheet draws the same icons, at a tenth
    r'<link rel="preload" as="(?:font|script)"[^>]*/?>',
    r"<script>const THEBE_JS_URL.*?</script>",
    r"<script[^>]*sphinx-thebe[^>]*></script>|<link[^>]*sphinx-thebe[^>]*/>",
    r'<script type="text/x-thebe-config">.*?</script>',
    r"<script>\s*kernelName = .*?</script>",
    r'<meta name="viewport" content="width=device-width, initial-scale=1"/>',
]
MENDED = [
    (r'data-default-mode=""', 'data-default-mode="auto"'),
    (r'getItem\("mode"\) \|\| ""', 'getItem("mode") || "auto"'),
    (
        r'<summary><span class="toctree-toggle" role="presentation">',
        '<summary aria-label="Sections of this chapter"><span class="toctree-toggle" role="presentation">',
    ),
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    (r' role="doc-biblioentry"', ""),
    (r' role="doc-backlink"', ""),
    (
        r"(<table class=\"[^\"]*table[^\"]*\".*?</table>)",
        r'<div class="scroll" role="region" tabindex="0" aria-label="table">\1</div>',
    ),
    # Scripts wait until the page can be read, MathJax even until all else is there.
    (r'<script (?:defer="defer" |async="async" )?(src="[^"]*mathjax/)', r'<script async fetchpriority="low" \1'),
    (r'<script( [^>]*)?( src="(?![^"]*(?:documentation_options|mathjax))[^"]*")>', r"<script defer\1\2>"),
    (r"</title>", f'</title>\n    <meta name="description" content="{DESCRIPTION}"/>'),
]


def cleaned(html: str) -> str:
    """A page without what it does not use; formulas keep their script where there are any."""
    for pattern in UNUSED:
        html = re.sub(pattern, "", html, flags=re.S)
    if 'class="math' not in html and "math notranslate" not in html:
        html = re.sub(r"<script[^>]*mathjax[^>]*></script>|<script>window\.MathJax.*?</script>", "", html, flags=re.S)
    for pattern, instead in MENDED:
        html = re.sub(pattern, instead, html, flags=re.S)
    return html


def sized(html: str, folder: Path) -> str:
    """The page with its pictures, except the first, loaded as one comes to them; nothing moves when they arrive."""

    def told(match: re.Match[str]) -> str:
        with Image.open(folder / match[2]) as picture:
            width, height = picture.size
        return f'{match[1]} width="{width}" height="{height}" loading="lazy"'

    first, rest = html[: (cut := html.find("_images/") + 1)], html[cut:]
    return first + re.sub(r'(<img [^>]*src="([^":?]*_images/[^":?]*\.png)")(?=[^>]*>)', told, rest)


WAYS_IN = {
    "use_repository_button": True,
    "use_edit_page_button": True,
    "use_issues_button": True,
    "launch_buttons": {
        "colab_url": "https://colab.research.google.com",
        "binderhub_url": "https://mybinder.org",
        "notebook_interface": "jupyterlab",
    },
}
ADDRESS = "ADDRESS-OF-THE-REPOSITORY"  # in Markdown: the one that `_config.yml` gives


def ways_in(app: Sphinx, config: Any) -> None:
    """Buttons to run, edit and discuss a page, where `_config.yml` gives the address of the repository; else none."""
    if config.html_theme_options.get("repository_url"):
        config.html_theme_options |= WAYS_IN


def addressed(app: Sphinx, name: str, source: list[str]) -> None:
    """Writes the address of the repository where a page asks for it."""
    source[0] = source[0].replace(ADDRESS, app.config.html_theme_options.get("repository_url") or ADDRESS)


def pages(folder: Path) -> Iterator[Path]:
    """The pages that were built, in order."""
    return iter(sorted(p for p in folder.rglob("*.html") if "_static" not in p.parts))


def finish(app: Sphinx, error: Exception | None) -> None:
    """Cleans every page, and writes sitemap.xml where the site has an address."""
    if error or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    for page in pages(folder):
        page.write_text(sized(cleaned(page.read_text(encoding="utf-8")), page.parent), encoding="utf-8")
    if base := app.config.html_baseurl:
        places = [
            f"  <url><loc>{base.rstrip('/')}/{p.relative_to(folder).as_posix()}</loc></url>" for p in pages(folder)
        ]
        head = '<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
        (folder / "sitemap.xml").write_text("\n".join([head, *places, "</urlset>\n"]), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension with Sphinx."""
    app.connect("config-inited", ways_in)
    app.connect("source-read", addressed)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
