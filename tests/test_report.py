"""The report: well-formed, whole in itself, escaped; and in a browser, where there is one, what it does."""

import base64
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jaxtta.core import InputError
from jaxtta.data import images
from jaxtta.reports import page as report

VOID = {"meta", "link", "img", "br", "input"}
ODD = 'tent<b> & "co"'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Page(HTMLParser):
    """Tags with their attributes, and the text of each; fails where one is closed that is not open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag):
        return [data for name, data in self.texts if name == tag]


@pytest.fixture
def made(tmp_path):
    """A report of four methods, a figure and three overlays."""
    path = tmp_path / "picture.png"
    images.write_png(path, np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3))
    rows = [["source", "80.00", "–"], [ODD, "9.50", "<0.001"], ["alpha", "81.25", "0.500"], ["sar", "–", "0.002"]]
    best = [[False] * 3, [False] * 3, [False, True, False], [False] * 3]
    table = report.Table("Scores <1>", ["method", "mean", "p"], rows, best)
    section = report.Section("Source a, protocol b", [table], ["Dice in percent"], [report.Picture(path, "T", 'a "b"')])
    images.write_jpeg(tmp_path / "overlay.jpg", np.zeros((20, 30, 3), np.uint8))
    shown = tmp_path / "overlay.jpg"
    of = {"source": "a", "protocol": "b", "domain": "north"}
    shots = [
        report.Shot(shown, "north/0001", -3.0, "-3.00", "harm", ODD, of={**of, "method": ODD}),
        report.Shot(shown, "north/0002", 1.5, "+1.50", "good", "alpha", of={**of, "method": "alpha"}),
        report.Shot(shown, "north/0003", float("nan"), title="alpha", of={**of, "method": "alpha"}, before=shown),
    ]
    orders = ("largest gain", "largest harm")
    gallery = report.Gallery(shots, "What is seen.", orders, names=("disc", "<cup>"), reference=True)
    record = {
        "methods": ["source", ODD],
        "versions": {"jax": "1"},
        "seconds": 12.5,
        "bad": [{"name": "<x>", "domain": "d"}],
    }
    return report.report(
        "A & B", [section], verdict=report.Verdict("It <helped>.", "good"), record=record, gallery=gallery,
        skipped=["d/x: <broken>"], repeat="jaxtta adapt --out 'a b'",
    )  # fmt: skip


def test_well_formed_with_one_heading_and_headers_that_say_what_they_are_of(made):
    page = Page(made)
    assert page.text("h1") == ["A & B"] and page.text("title") == ["A & B"]
    assert page.text("h2") == [
        "Source a, protocol b", "Images", "What was left out", "How to repeat it", "What was run",
    ]  # fmt: skip
    assert all(th.get("scope") in ("row", "col") for th in page.all("th"))
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {a["href"] for a in page.all("a")} <= {f"#{identifier}" for identifier in identifiers}
    assert page.text("strong")[0] == "81.25"
    assert page.all("html")[0]["lang"] == "en"


def test_nothing_is_loaded_and_every_picture_is_inside_with_a_text(made):
    page = Page(made)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), f"<{tag} {name}={value[:40]}>"
    assert not re.search(r"@import|url\s*\(|https?://", made)
    assert page.all("meta")[1]["content"].startswith("default-src 'none'")
    assert len(page.all("img")) == 5
    for picture in page.all("img"):
        assert picture["alt"] and (picture["width"], picture["height"]) == ("30", "20")
        kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", picture["src"]).groups()
        assert base64.b64decode(data).startswith(report.SIGNATURES[kind])
    assert [picture["src"][11:15] for picture in page.all("img")] == ["png;", *["jpeg"] * 4]


def test_text_is_escaped(made):
    page = Page(made)
    assert not page.all("b") and not page.all("x")
    assert ODD in page.text("th") and ODD in page.text("option") and ODD in page.text("strong")
    assert {figure["data-method"] for figure in page.all("figure") if "data-method" in figure} == {ODD, "alpha"}
    assert page.all("img")[0]["alt"] == 'a "b"'
    assert page.text("code") == ["jaxtta adapt --out 'a b'"] and "It <helped>." in page.text("p")
    assert "d/x: <broken>" in page.text("li") and "<cup>" in page.text("li")
    assert "bad" in page.text("th") and "name: <x>, domain: d" in page.text("td")


def test_the_gallery_begins_with_the_largest_gain_and_a_filter_that_has_no_choice_is_left_out(made):
    page = Page(made)
    gains = [figure["data-value"] for figure in page.all("figure") if "data-value" in figure]
    assert gains == ["1.5", "-3", "nan"]
    assert [select["name"] for select in page.all("select")] == ["method", "first"]


def test_the_smallest_report_and_a_picture_that_is_none(tmp_path):
    page = Page(report.report("Nothing", []))
    assert not page.all("table") and page.all("form") == [{"method": "dialog"}]
    with pytest.raises(InputError, match=r"absent\.png: no such file"):
        report.report("A", [report.Section("B", pictures=[report.Picture(tmp_path / "absent.png", "T", "t")])])
    Image.new("L", (4, 4)).save(tmp_path / "old.bmp")
    with pytest.raises(InputError, match=r"old\.bmp: pictures of a report are PNG or JPEG"):
        report.report("A", [report.Section("B", pictures=[report.Picture(tmp_path / "old.bmp", "T", "t")])])


# Runs before the page's own script, and after it: what a person does, and what is then seen.
LISTEN = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push(event.blockedURI));
console.error = console.warn = (...words) => errors.push(words.join(" "));
</script>"""
ACT = """<script>
const seen = { errors };
const names = () => [...document.querySelectorAll(".sortable tbody th")].map((cell) => cell.textContent);
const headers = document.querySelectorAll(".sortable thead th");
const press = (column) => { headers[column].querySelector("button").click(); return names(); };
seen.down = press(1);
seen.order = headers[1].getAttribute("aria-sort");
seen.up = press(1);
seen.p = press(2);
seen.method = press(0);
const shown = () => [...document.querySelectorAll(".gallery figure")].filter((one) => one.offsetParent)
  .map((one) => one.dataset.value);
const choose = (name, value) => {
  const select = document.querySelector(`select[name=${name}]`);
  select.value = value;
  select.dispatchEvent(new Event("change", { bubbles: true }));
  return shown();
};
seen.all = shown();
seen.harm = choose("first", "least");
seen.alpha = choose("method", "alpha");
seen.count = document.querySelector("output").textContent;
document.querySelector(".gallery figure:not([hidden]) > img").click();
seen.enlarged = document.querySelector("dialog[open] img").alt;
document.querySelector("dialog button").click();
seen.closed = document.querySelector("dialog[open]") === null;
const slider = document.querySelector(".pair input");
slider.value = 20;
slider.dispatchEvent(new Event("input"));
seen.cut = slider.parentElement.style.getPropertyValue("--cut");
const right = (one) => one.getBoundingClientRect().right;
const beyond = [...document.body.querySelectorAll("*")].filter((one) => right(one) > innerWidth + 1);
seen.beyond = beyond.map((one) => `${one.tagName} ${one.className}`);
seen.loaded = performance.getEntriesByType("resource").map((entry) => entry.name).filter((n) => !n.startsWith("data:"));
seen.wide = document.documentElement.scrollWidth > innerWidth;
Promise.all([...document.images].map((image) => image.decode().then(() => 1, () => 0))).then((decoded) => {
  seen.decoded = decoded;
  const text = document.createElement("pre");
  text.id = "seen";
  text.textContent = JSON.stringify(seen);
  document.body.append(text);
});
</script>"""


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the path")
def test_in_a_browser_tables_are_sorted_and_the_gallery_is_filtered(made, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(made.replace("<head>", f"<head>{LISTEN}").replace("</body>", f"{ACT}</body>"), encoding="utf-8")
    flags = ["--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=390,844", "--virtual-time-budget=5000"]
    command = [BROWSER, *flags, "--dump-dom", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert seen["errors"] == [] and seen["loaded"] == [] and set(seen["decoded"]) == {1} and not seen["wide"]
    assert seen["cut"] == "20%" and seen["beyond"] == []
    assert seen["down"] == ["alpha", "source", ODD, "sar"] and seen["order"] == "descending"
    assert seen["up"] == [ODD, "source", "alpha", "sar"]
    assert seen["p"] == ["alpha", "sar", ODD, "source"]
    assert seen["method"] == ["alpha", "sar", "source", ODD]
    assert seen["all"] == ["1.5", "-3", "nan"] and seen["harm"] == ["-3", "1.5", "nan"]
    assert seen["alpha"] == ["1.5", "nan"] and seen["count"] == "2 of 3"
    assert "alpha" in seen["enlarged"] and seen["closed"]


def test_what_was_run_shows_zero_but_nothing_that_is_nothing():
    record = {"seed": 0, "repeat": 1, "episodic": False, "settings": {}, "order": None, "monitor": "reset"}
    assert report.recorded(record, (*record, "absent")) == {"seed": 0, "repeat": 1, "monitor": "reset"}
