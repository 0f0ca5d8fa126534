"""The documentation as a site: it builds without a warning, loads nothing from the network and fits a phone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import browser
import pytest

DOCS = Path(__file__).parent.parent / "docs"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = (sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html")
    done = subprocess.run(
        (*command, "-d", str(folder / "state"), str(DOCS), str(folder / "html")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_is_there(site: Path) -> None:
    assert {path.stem for path in DOCS.glob("*.md")} <= {path.stem for path in site.glob("*.html")}


def test_pages_load_nothing_from_the_network_and_fit(site: Path, tmp_path: Path) -> None:
    pages = sorted(site.glob("*.html"))
    with browser.chromium(tmp_path) as tab:
        for width in (390, 1120, 1280):
            for page in pages:
                tab.show(page, width=width, dark=False)
                assert [url for url in tab.requests() if not url.startswith(("file:", "data:"))] == [], page.name
                assert tab.said() == [], page.name
                assert tab.evaluate("document.documentElement.scrollWidth") == width, page.name
                broken = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
                assert tab.evaluate(broken) == [], page.name
