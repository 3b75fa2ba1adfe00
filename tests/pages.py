"""Reading a page of ``--report``: its structure, its figures, and how a browser shows it."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from lapse.apps._shared.report import DATA

#: Elements without an end.
_VOID = {"meta", "br"}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page(HTMLParser):
    """A page that is complete: each element ends where it should.

    Attributes
    ----------
    result
        Of the table of the result: the text by name.
    figures
        The captions.
    data
        The JSON in the page.
    """

    def __init__(self, path):
        super().__init__()
        self._open, self._name, self._text = [], None, ""
        self.result, self.figures, self.data, self.titles = {}, [], None, []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert not {"src", "href"} & attributes.keys(), "a page needs nothing else"
        if tag not in _VOID:
            self._open.append(tag)
        self._name, self._text = attributes.get("data-name", attributes.get("id")), ""

    def handle_startendtag(self, tag, attrs):
        assert not {"src", "href"} & dict(attrs).keys()

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "td" and self._name is not None:
            self.result[self._name] = self._text
        elif tag == "figcaption":
            self.figures.append(self._text)
        elif tag == "title":
            self.titles.append(self._text)
        elif tag == "script" and self._name == DATA:
            self.data = json.loads(self._text)
        self._name = None


def check_page(path, result, captions):
    """The page has these charts and shows the figures of the result; returns it."""
    page = Page(path)
    assert page.data["result"] == result
    assert page.result.keys() == result.keys()
    for name, value in result.items():
        shown = page.result[name]
        if isinstance(value, str):
            assert shown == value
        elif isinstance(value, int | float):
            assert float(shown.replace(",", "")) == pytest.approx(value, rel=1e-3)
    assert {*captions} <= {*page.figures}, page.figures
    assert len(page.data["epochs"][0]["ranks"]) == result["ranks"]
    return page


def look_at(path):
    """Let a browser show the page; the number of charts that it has drawn with a size. Skips without a browser."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(_BROWSERS)} is installed")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    probe = path.with_name("probe.html")
    script = (
        "<script>document.title = [...document.querySelectorAll('svg, table')]"
        ".filter(e => e.getBoundingClientRect().width > 50).length</script></body>"
    )
    probe.write_text(path.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    shown = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, timeout=60, check=True).stdout
    return int(shown.split("<title>")[1].split("</title>")[0])
