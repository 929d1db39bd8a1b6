"""The page in a real browser: a whole session by keyboard, on a phone's width, with hostile text.

pytest tests/test_annotate_browser.py; `SCREENSHOTS=DIR` keeps what it saw.
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from posttrain.annotate.store import Store
from posttrain.rows import Message, Task
from tests.test_annotate_rendering import XSS

CODE = (
    "Here it is:\n\n```python\ndef add(a, b):\n    return a + b\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |"
)
HEBREW = "שלום עולם, **מה** שלומך?"
CHINESE = "二加二等于四。\n\n- 一\n- 二"
SERVE = """
import sys
from pathlib import Path
from posttrain.annotate.collection import Collection
from posttrain.annotate.serving import serve
from posttrain.annotate.store import Store
store, port = Store(Path(sys.argv[1])), int(sys.argv[2])
serve(Collection("tiny world, round 1", 1, store, Path("unused"), [], 1.0), "127.0.0.1", port)
"""


def said(text: str, role: str = "assistant") -> Message:
    return Message.model_validate({"role": role, "content": text})


def task(number: int, prompt: str, a: str, b: str, times: int = 1) -> Task:
    return Task(
        id=f"round-1/q{number}",
        prompt=(said(prompt, "user"),),
        a=(said(a),),
        b=(said(b),),
        model_a="x",
        model_b="y",
        capability="math",
        batch="round-2",
        times=times,
    )


class Site:
    """A store and the server on it, which can be started again."""

    def __init__(self, folder: Path, tasks: list[Task]) -> None:
        self.store = Store(folder / "round-1.sqlite")
        self.store.publish(tasks)
        self.path, self.port = folder / "round-1.sqlite", 18000 + os.getpid() % 2000
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-c", SERVE, str(self.path), str(self.port)]
        self.process = subprocess.Popen(words)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/static/annotate.css")
                return
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None
                time.sleep(0.1)

    def link(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/a/{self.store.add_annotator(name)}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, the machine's own where Playwright has none."""
    own = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    """Makes a site of tasks."""
    sites = []

    def make(*tasks: Task) -> Site:
        sites.append(Site(tmp_path, list(tasks)))
        return sites[-1]

    yield make
    for site in sites:
        site.kill()


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def shows(page: Page, who: str) -> None:
    """Waits for the page of somebody who has done so much, its script included."""
    expect(page.locator(".who")).to_have_text(who)
    page.wait_for_load_state("load")


def shown_first(page: Page) -> str:
    return page.locator("#first .text").inner_text()


def test_a_whole_session_by_keyboard(opened: Any, browser: Browser) -> None:
    site = opened(
        task(0, "Add two numbers in Python?", CODE, "No idea."),
        task(1, "שאלה?", HEBREW, "לא"),
        task(2, "二加二?", CHINESE, "五"),
        task(3, "Last?", "yes", "no", times=2),
    )
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(site.link("ana"))
    expect(page.locator("#first pre code, #second pre code")).to_have_count(1)
    expect(page.locator("table")).to_have_count(1)
    keys = page.keyboard
    # Pick, edit with a visible diff, and submit, without a mouse.
    keys.press("2")
    expect(page.locator("#first")).to_have_class("response chosen")
    shot(page, "1-chosen")
    before = page.locator("#first .source").input_value()
    keys.press("e")
    expect(page.locator("#edited")).to_be_focused()
    assert page.locator("#edited").input_value() == before
    keys.press("End")
    keys.press("Control+End")
    keys.type(" Indeed!")
    expect(page.locator("#diff ins")).to_have_text(" Indeed!")
    shot(page, "2-edit")
    keys.press("Escape")
    # What was typed for one response is still there when it is chosen again.
    keys.press("7")
    assert page.locator("#edited").input_value() == page.locator("#second .source").input_value()
    keys.press("2")
    assert page.locator("#edited").input_value() == before + " Indeed!"
    keys.press("Enter")
    shows(page, "ana: 1 done")
    (made,) = site.store.judgments()
    assert made.strength == "better" and made.choice == made.first
    assert made.edited is not None and made.edited[0].content == before + " Indeed!"
    # Undo shows the same task again, the same way around; another verdict is taken.
    keys.press("u")
    shows(page, "ana: 0 done")
    assert page.locator("#first .source").input_value() == before
    keys.press("7")
    expect(page.locator("#second")).to_have_class("response chosen")
    keys.press("Enter")
    shows(page, "ana: 1 done")
    # Loaded again in the middle, and served again after a kill: the same task.
    shot(page, "3-right-to-left")
    second = shown_first(page)
    keys.press("5")
    page.reload()
    assert shown_first(page) == second
    site.kill()
    site.start()
    page.reload()
    assert shown_first(page) == second
    keys.press("5")
    keys.press("Enter")
    shows(page, "ana: 2 done")
    # A skip wants a reason.
    shot(page, "4-chinese")
    keys.press("0")
    keys.press("Enter")
    shows(page, "ana: 2 done")
    keys.press("r")
    keys.type("unsure")
    keys.press("Enter")
    shows(page, "ana: 3 done")
    keys.press("9")
    keys.press("Enter")
    expect(page.locator("h1")).to_have_text("tiny world, round 1")
    expect(page.locator("main")).to_contain_text("you judged 4, and 4 of 5 judgments are in")
    shot(page, "5-done")
    assert [one.choice for one in site.store.judgments()][1:3] == ["tie", "skip"]
    page.close()
    # Somebody else judges what is meant to be judged twice, and sees how they agree from then on.
    other = browser.new_page(viewport={"width": 390, "height": 800})
    other.goto(site.link("ben"))
    shows(other, "ben: 0 done")
    assert other.evaluate("document.documentElement.scrollWidth") <= 390
    shot(other, "6-phone")
    other.keyboard.press("5")
    other.keyboard.press("Enter")
    expect(other.locator("h1")).to_have_text("tiny world, round 1")
    assert site.store.progress("ben")[:3] == (5, 5, 1)
    other.close()


def test_hostile_text_never_runs(opened: Any, browser: Browser) -> None:
    tasks = [
        task(number, text, f"{text} a", f"b\n\n```{text}\n{text}\n```")
        for number, text in enumerate(XSS)
    ]
    site = opened(*tasks)
    page = browser.new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(site.link("ana"))
    for number in range(len(tasks)):
        shows(page, f"ana: {number} done")
        page.keyboard.press("3")
        page.keyboard.press("e")
        page.keyboard.type(XSS[0])
        expect(page.locator("#diff ins")).not_to_have_count(0)
        page.keyboard.press("Escape")
        page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("tiny world, round 1")
    assert dialogs == []
    # Nothing but our own page, script, style and diff was ever asked for.
    assert all(url.startswith(f"http://127.0.0.1:{site.port}/") for url in requests)
    assert len(site.store.judgments()) == len(tasks)
    page.close()


def test_the_page_works_without_scripts(opened: Any, browser: Browser) -> None:
    site = opened(task(0, "2+2?", "4", "5"))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site.link("ana"))
    page.locator("input[value='first/better']").check()
    page.locator("summary").click()
    page.locator("noscript input[name=editing]").fill("first")
    page.locator("#edited").fill("four")
    page.locator("button.submit").click()
    expect(page.locator("main")).to_contain_text("you judged 1")
    (made,) = site.store.judgments()
    assert made.edited is not None and made.edited[0].content == "four"
    context.close()
