"""The teaching pages, built once for all tests, and a browser for them."""

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from chromium import Browser
from pages import SETTLED

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where the pages were built: by the first worker that needs them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "teaching-pages"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            for tool in ("ring_page.py", "loss_page.py"):
                subprocess.run([sys.executable, str(ROOT / "tools" / tool), str(folder)], check=True, timeout=500)
            (folder / "built").touch()
    return folder


@pytest.fixture(scope="session")
def data(folder):
    """What the page of the ring was built from."""
    text = (folder / "ring-page.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, folder):
    """The page of the ring, fresh; in the end the console must be silent and nothing asked of a network."""
    page = browser.page((folder / "ring-page.html").as_uri(), prefers_reduced_motion="reduce")
    page.run(SETTLED)
    yield page
    assert page.complaints() == []
    page.close()
