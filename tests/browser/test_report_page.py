"""The report's page in a real browser: it loads nothing, fits its window, can be read, and takes
what hosts say for text.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.plugin_utils.report_page import render

from tests.browser import reports
from tests.contract import validators

pytestmark = pytest.mark.slow

POLICY = (
    '<meta http-equiv="Content-Security-Policy"'
    """ content="default-src 'none'; style-src 'unsafe-inline'">"""
)

REPORTS: dict[str, Callable[[], dict[str, Any]]] = {
    "one host": lambda: reports.fleet(1),
    "forty hosts": lambda: reports.fleet(40),
    "two hundred hosts": lambda: reports.fleet(200),
    "older release": lambda: validators.example("report"),
    "hostile": reports.hostile,
}

# What sticks out of the page on the right, with every fold closed and open; a box that scrolls or
# cuts may hold what is wider.
TOO_WIDE = """(page, window) => [false, true].flatMap(open => {
    page.querySelectorAll("details").forEach(fold => fold.open = open);
    const width = page.documentElement.clientWidth;
    const held = one => one !== page.body && \
(window.getComputedStyle(one).overflowX !== "visible" || held(one.parentElement));
    const wide = [...page.querySelectorAll("body *")]\
.filter(one => one.getBoundingClientRect().right > width + 0.5
        && !held(one.parentElement));
    const all = page.documentElement.scrollWidth > width \
? [`the page: ${page.documentElement.scrollWidth} of ${width} px`] : [];
    return all.concat(wide.map(one => `${one.tagName} ${one.className}`));
})"""

# The same at each width in px, of one page that is made wider.
WIDTHS = (400, 700, 1000, 1280, 1440)
TOO_WIDE_AT = f"""(page, window) => Object.fromEntries({list(WIDTHS)}.map(width => {{
    window.frameElement.width = width;
    return [width, ({TOO_WIDE})(page, window)];
}}))"""

# Each text whose colour is too near to what is behind it (WCAG 2.2, 1.4.3: 4.5 to 1).
TOO_PALE = """(page, window) => {
    page.querySelectorAll("details").forEach(fold => fold.open = true);
    const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => rgb(colour).slice(0, 3).map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const style = one => window.getComputedStyle(one);
    const behind = one => {
        if (one.matches("text.label")) return style(one.parentElement.querySelector("rect")).fill;
        for (; one; one = one.parentElement) if (rgb(style(one).backgroundColor)[3] !== 0) \
return style(one).backgroundColor;
        return "rgb(255, 255, 255)";
    };
    const pale = new Set(["texts seen"]);
    const walker = page.createTreeWalker(page.body, window.NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const one = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || one.tagName === "title") continue;
        const colour = one.closest("svg") ? style(one).fill : style(one).color;
        const [lower, upper] = [light(colour), light(behind(one))].sort((a, b) => a - b);
        if ((upper + 0.05) / (lower + 0.05) < 4.5) \
pale.add(`${one.tagName} ${one.getAttribute("class")}: ${colour} on ${behind(one)}`);
    }
    return [...pale];
}"""


@pytest.fixture
def address() -> Iterator[str]:
    """A picture's address at a port where no server answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/picture.png"


def test_nothing_is_loaded(browser, address):
    report = validators.example("report")
    report["hosts"][0]["host"] = f'<img src="{address}">'
    page = render(report)
    assert address in page and browser.requests(page) == []


def test_nothing_could_be_loaded(browser, address):
    """Even markup that got past the escaping: the policy stops it, and without the policy it is
    seen.
    """
    page = render(validators.example("report")).replace("<main>", f'<main><img src="{address}">')
    assert browser.requests(page) == []
    assert POLICY in page
    assert browser.requests(page.replace(POLICY, "")) == [address]


@pytest.mark.parametrize("name", REPORTS)
def test_page_fits_its_window(browser, name):
    found = browser.look(render(REPORTS[name]()), TOO_WIDE_AT)
    assert found == {str(width): [] for width in WIDTHS}


def test_page_that_does_not_fit_is_found(browser):
    page = render(reports.fleet(1)).replace("<main>", '<main><p class="long" style="width: 701px">')
    found = browser.look(page, TOO_WIDE_AT)
    assert [width for width in WIDTHS if "P long" in found[str(width)]] == [400, 700]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(browser, dark):
    page = render(reports.fleet(14))
    assert browser.look(page, TOO_PALE, dark=dark) == ["texts seen"]
    background = "(page, window) => window.getComputedStyle(page.body).backgroundColor"
    assert browser.look(page, background, dark=dark) == (
        "rgb(20, 24, 27)" if dark else "rgb(255, 255, 255)"
    )


@pytest.mark.parametrize("width", [400, 1280])
def test_marks_of_slow_hosts_are_on_the_axis_of_the_dots(browser, width):
    """The slowest host is at an end of it: the left one, or the right one where less is better."""
    look = """page => ["hbm_copy", "first_token"].map(name => {
        const swarm = [...page.querySelectorAll(".measured")]
            .find(one => one.querySelector("h3").textContent === name).querySelector(".swarm");
        const [axis, mark] = [swarm, swarm.querySelector("li .mark")]
            .map(one => one.getBoundingClientRect());
        return Math.round(100 * (mark.left + mark.width / 2 - axis.left) / axis.width);
    })"""
    assert browser.look(render(reports.fleet(14)), look, width) == [0, 100]


def test_pale_text_is_found(browser):
    page = re.sub(
        "--quiet: #[0-9a-f]+", "--quiet: #aaaaaa", render(validators.example("report")), count=1
    )
    assert "P eyebrow: rgb(170, 170, 170) on rgb(255, 255, 255)" in browser.look(page, TOO_PALE)


def test_what_hosts_say_is_text(browser):
    report = reports.hostile()
    look = """page => ({
        title: page.title,
        foreign: page.querySelectorAll(\
"script, img, iframe, object, link, base, form, [onerror], [onload]").length,
        hosts: [...page.querySelectorAll("[aria-labelledby=stages] tbody th a")]\
.map(link => link.textContent),
        problem: page.querySelector(".problem p").textContent,
        sections: page.querySelectorAll("main > section").length,
    })"""
    seen = browser.look(render(report), look)
    assert seen["title"].startswith("METRICS_READY 1 of 3: ")
    assert seen["foreign"] == 0
    assert seen["hosts"] == [host["host"] for host in report["hosts"]]
    assert seen["problem"] == reports.HOSTILE
    assert seen["sections"] == 8
    taken = browser.look(
        render(report),
        "page => [...page.querySelectorAll('[aria-labelledby=fleet] .why')].map(one =>"
        " one.textContent)",
    )
    assert f"moe_tune, image from {reports.HOSTILE}" in taken


def test_address_that_would_run_is_no_link(browser):
    report = validators.example("report")
    report["hosts"][0]["links"]["prometheus"] = "javascript:alert(1)"
    page = render(report)
    assert "javascript:alert(1)" in page
    assert browser.look(page, 'page => page.querySelectorAll("a[href^=javascript]").length') == 0


def test_a_fold_is_open_on_paper(browser):
    """What the rule for print says cannot be seen on a screen, so it is moved there."""
    page = render(reports.fleet(40))
    shown = (
        'page => [...page.querySelectorAll("details .inside")].filter(one =>'
        " one.checkVisibility({contentVisibilityAuto: true})).length"
    )
    assert browser.look(page, shown) == 0
    assert browser.look(page.replace("@media print", "@media screen"), shown) == 40
    names = shown.replace("details .inside", "details.more a")
    assert browser.look(page, names) == 0
    folded = sum(
        fold.count("<a ") for fold in re.findall(r'<details class="more">.*?</details>', page)
    )
    assert (
        folded > 40 and browser.look(page.replace("@media print", "@media screen"), names) == folded
    )
