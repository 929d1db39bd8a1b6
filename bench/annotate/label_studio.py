"""A round trip through a real Label Studio: export, judge in its page and by its API, import.

Knows a running server and its first user; a second one signs up. Some tasks are judged in a real
browser, so that the annotations are those which Label Studio's own page makes.

    label-studio start --port 8085 --username a@example.org --password secret-enough \
        --user-token TOKEN --enable-legacy-api-token
    python -m bench.annotate.label_studio --url http://127.0.0.1:8085 --token TOKEN \
        --user a@example.org --password secret-enough
"""

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, sync_playwright

from bench.annotate.load import tasks
from bench.machine import write_result
from posttrain.annotate.collection import Collection
from posttrain.annotate.exchange import export_collection, import_judgments
from posttrain.annotate.label_studio import first_side
from posttrain.annotate.store import Store
from posttrain.rows import Judgment, Task

SECOND = ("ben@example.org", "another-secret")
Wanted = dict[str, Any]
"""What somebody meant to say of a task."""
STRENGTHS = ("significantly better", "better", "slightly better", "marginally better")


def collection(folder: Path, num: int) -> Collection:
    """A collection of so many tasks."""
    store, made = Store(folder / "round.sqlite"), tasks(num)
    store.publish(made)
    return Collection("label studio", 1, store, folder / "round-1.jsonl", made, 1.0)


def sign_up(url: str) -> int:
    """The number of a second user of the server."""
    with httpx.Client(base_url=url, follow_redirects=True) as client:
        client.get("/user/signup/")
        form = {
            "email": SECOND[0],
            "password": SECOND[1],
            "csrfmiddlewaretoken": client.cookies["csrftoken"],
        }
        client.post("/user/signup/", data=form, headers={"Referer": url})
        found = client.get("/api/current-user/whoami")
        if found.status_code != 200:
            form["csrfmiddlewaretoken"] = client.cookies["csrftoken"]
            client.post("/user/login/", data=form, headers={"Referer": url})
            found = client.get("/api/current-user/whoami")
        return int(found.json()["id"])


def log_in(page: Page, url: str, user: str, password: str) -> None:
    """Open the server's page as somebody."""
    page.goto(f"{url}/user/login/")
    page.fill("input[name=email]", user)
    page.fill("input[name=password]", password)
    page.click("button[type=submit]")
    page.wait_for_load_state("networkidle")


def judge(page: Page, url: str, project: int, task: int, what: dict[str, Any]) -> None:
    """One judgment in Label Studio's page."""
    page.goto(f"{url}/projects/{project}/data?task={task}")
    page.get_by_role("button", name="Submit").wait_for(timeout=60_000)
    if what.get("side"):
        header = {"left": "First", "right": "Second"}[what["side"]]
        page.locator(".side", has=page.get_by_text(header, exact=True)).locator(
            "[class*=htx]"
        ).first.click()
    # The page shows the key beside the words.
    page.get_by_text(re.compile(rf"^{what['strength']}(\[\d\])?$")).first.click()
    if what.get("edited"):
        page.locator("textarea").first.fill(what["edited"])
        page.get_by_text("Add", exact=True).first.click()
    page.wait_for_timeout(500)
    with page.expect_response(lambda one: "/annotations" in one.url and one.status == 201):
        page.get_by_role("button", name="Submit").click()


def new_project(api: httpx.Client, folder: Path) -> tuple[int, dict[str, int]]:
    """A project of what was exported: its number, and Label Studio's numbers of our tasks."""
    interface = (folder / "interface.xml").read_text()
    made = api.post("/api/projects", json={"title": "round trip", "label_config": interface})
    made.raise_for_status()
    project = made.json()["id"]
    rows = json.loads((folder / "tasks.json").read_text())
    api.post(f"/api/projects/{project}/import", json=rows).raise_for_status()
    query = {"project": project, "page_size": 100}
    listed = api.get("/api/tasks", params=query).json()["tasks"]
    return project, {one["data"]["task"]: one["id"] for one in listed}


def judge_in_page(
    options: argparse.Namespace, project: int, numbers: Mapping[str, int], tasks: Sequence[Task]
) -> dict[str, Wanted]:
    """The first user judges in a real browser: all strengths, an edit, a tie."""
    wanted: dict[str, Wanted] = {}
    own = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        log_in(page, options.url, options.user, options.password)
        for place, task in enumerate(tasks):
            what = {"side": ("left", "right")[place % 2], "strength": (*STRENGTHS, "tie")[place]}
            what = {"strength": "tie"} if what["strength"] == "tie" else what
            what |= {"edited": "edited\nin two lines"} if place == 1 else {}
            judge(page, options.url, project, numbers[task.id], what)
            wanted[task.id] = {**what, "annotator": "ana"}
        browser.close()
    return wanted


def judge_by_api(url: str, numbers: Mapping[str, int], tasks: Sequence[Task]) -> dict[str, Wanted]:
    """The second user judges by the server's API; the last task is skipped."""
    wanted: dict[str, Wanted] = {}
    with httpx.Client(base_url=url, follow_redirects=True) as client:
        client.get("/user/login/")
        token = client.cookies["csrftoken"]
        form = {"email": SECOND[0], "password": SECOND[1], "csrfmiddlewaretoken": token}
        client.post("/user/login/", data=form, headers={"Referer": url})
        headers = {"X-CSRFToken": client.cookies["csrftoken"], "Referer": url}
        for place, task in enumerate(tasks):
            side, strength = ("left", "right")[place % 2], STRENGTHS[place % 4]
            result = [
                {"from_name": "better", "to_name": "better", "type": "pairwise",
                 "value": {"selected": side}},
                {"from_name": "strength", "to_name": "dialog", "type": "choices",
                 "value": {"choices": [strength]}},
            ]  # fmt: skip
            skip = place == len(tasks) - 1
            body = {"result": [] if skip else result, "lead_time": 1.5 + place}
            sent = client.post(
                f"/api/tasks/{numbers[task.id]}/annotations/",
                json={**body, "was_cancelled": skip},
                headers=headers,
            )
            sent.raise_for_status()
            wanted[task.id] = {"side": side, "strength": strength, "annotator": "ben", "skip": skip}
    return wanted


def differences(task: Task, one: Judgment, expected: Wanted, told: Mapping[str, Any]) -> list[str]:
    """What came back otherwise than it was judged, or than the server says."""
    order = first_side(task)
    other = "b" if order == "a" else "a"
    choice = {"left": order, "right": other}.get(str(expected.get("side")), "tie")
    choice = "skip" if expected.get("skip") else choice
    server_at = datetime.fromisoformat(told["created_at"].replace("Z", "+00:00"))
    made_at = datetime.fromisoformat(str(one.at))
    checks = {
        "choice": one.choice == choice,
        "strength": one.choice in ("tie", "skip") or one.strength == expected["strength"],
        "order": one.first == order,
        "annotator": one.annotator == expected["annotator"],
        "time": abs((made_at - server_at).total_seconds()) < 0.001,
        "seconds": one.seconds == told["lead_time"],
        "edit": (one.edited[0].content if one.edited else None) == expected.get("edited"),
    }
    return [f"{task.id}: {name}" for name, ok in checks.items() if not ok]


def main() -> None:
    """Check the round trip and write the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--url", "--token", "--user", "--password"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    source = collection(folder / "source", 12)
    export_collection(source, "label-studio", folder / "ls")
    headers = {"Authorization": f"Token {options.token}"}
    api = httpx.Client(base_url=options.url, headers=headers, timeout=60)
    project, numbers = new_project(api, folder / "ls")
    people = {api.get("/api/current-user/whoami").json()["id"]: "ana", sign_up(options.url): "ben"}
    in_page = judge_in_page(options, project, numbers, source.tasks[:5])
    by_api = judge_by_api(options.url, numbers, source.tasks[5:])
    wanted = in_page | by_api
    query = {"exportType": "JSON", "download_all_tasks": "true"}
    exported = api.get(f"/api/projects/{project}/export", params=query)
    (folder / "export.json").write_text(exported.text)
    target = collection(folder / "target", 12)
    done = import_judgments(target, folder / "export.json", "label-studio", people, 0.0)
    told = {one["data"]["task"]: one["annotations"][0] for one in exported.json()}
    judgments = {one.task: one for one in target.store.judgments()}
    wrong = [
        text
        for task in source.tasks
        for text in differences(task, judgments[task.id], wanted[task.id], told[task.id])
    ]
    result = {
        "label_studio": api.get("/api/version").json().get("release"),
        "tasks": len(source.tasks),
        "judged_in_its_page": len(in_page),
        "judged_by_its_api": len(by_api),
        "imported": done.taken,
        "refused": len(done.rejects),
        "differences_in_id_choice_strength_order_annotator_time_edit": wrong,
    }
    write_result(Path(__file__).with_name("label_studio.json"), result)


if __name__ == "__main__":
    main()
