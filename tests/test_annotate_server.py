"""The page of a collection, request by request: what is shown, taken and refused.

pytest tests/test_annotate_server.py
"""

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from posttrain.annotate.answers import LONGEST_EDIT
from posttrain.annotate.server import Site, create_app
from posttrain.annotate.store import Store
from tests.made_tasks import said, task
from tests.test_annotate_rendering import XSS, Tags

HOST = "127.0.0.1:8800"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "round.sqlite")
    store.publish([task(number) for number in range(3)])
    return store


def visitor(store: Store, name: str = "ana") -> TestClient:
    """Somebody who has opened their link."""
    client = TestClient(
        create_app(store, Site("tiny, round 1", (HOST,))), base_url=f"http://{HOST}"
    )
    entered = client.get(f"/a/{store.add_annotator(name)}")
    assert entered.status_code == 200
    return client


def form(client: TestClient, **changes: str) -> dict[str, str]:
    """The fields of the page that somebody sees."""
    page = client.get("/").text
    found = dict(
        re.findall(r'<input type="hidden" name="(\w+)"(?: id="\w+")? value="([^"]*)">', page)
    )
    return {**found, **changes}


def test_a_session_is_judged_undone_and_finished(store: Store) -> None:
    client = visitor(store)
    page = client.get("/").text
    assert "question 0?" in page and "answer a0" in page and "answer b0" in page
    # Nobody can tell a model.
    assert "dpo" not in page
    first = form(client)["task"]
    sent = client.post("/judge", data=form(client, verdict="first/better", reason="clear"))
    assert sent.status_code == 200 and form(client)["task"] != first
    assert client.post("/undo", data=form(client)).status_code == 200
    assert form(client)["task"] == first and store.judgments() == []
    for verdict in ("first/significantly better", "tie", "skip"):
        client.post("/judge", data=form(client, verdict=verdict, reason="because"))
    assert "nothing to judge for you now" in client.get("/").text
    assert [one.choice for one in store.judgments()][1:] == ["tie", "skip"]
    store.close()
    assert "This collection is closed" in client.get("/").text


def test_an_edit_is_kept_as_it_was_typed(store: Store) -> None:
    client = visitor(store)
    fields = form(client, verdict="second/slightly better", editing="second", edited="a\r\n<b>")
    client.post("/judge", data=fields)
    (made,) = store.judgments()
    assert made.edited is not None and made.edited[0].content == "a\n<b>"
    # What was typed for a response that was not chosen in the end is no edit.
    client.post("/judge", data=form(client, verdict="first/better", editing="second", edited="x"))
    assert store.judgments()[1].edited is None


@pytest.mark.parametrize("text", XSS)
def test_nothing_of_a_model_runs_in_the_page(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path / "round.sqlite")
    store.publish([task(0, a=[said(text)], b=[said(f"{text} and more")])])
    client = visitor(store)
    page = client.get("/")
    tags = Tags()
    tags.feed(page.text)
    scripts = [value for name, value in tags.attributes if name == "src"]
    assert scripts == ["/static/annotate.js"]
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert not tags.tags & {"iframe", "img", "svg", "object", "embed", "style"}
    hrefs = {value for name, value in tags.attributes if name == "href"}
    assert hrefs == {"/static/annotate.css"}
    assert page.headers["content-security-policy"].startswith(
        "default-src 'none'; script-src 'self'"
    )
    told = client.post("/diff", json={"before": "", "after": text}, headers=own(client))
    assert told.headers["content-type"] == "application/json"
    assert "".join(part for _, part in told.json()) == text


def own(client: TestClient) -> dict[str, str]:
    return {"X-Check": form(client)["check"]}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Origin": f"http://{HOST}"}, 200),
        # Behind a proxy that speaks TLS.
        ({"Origin": f"https://{HOST}"}, 200),
        ({"Origin": f"https://{HOST}.evil.example"}, 403),
    ],
)
def test_requests_of_other_sites_are_refused(
    store: Store, headers: dict[str, str], status: int
) -> None:
    client = visitor(store)
    fields = form(client, verdict="tie")
    assert client.post("/judge", data=fields, headers=headers).status_code == status
    assert len(store.judgments()) == (status == 200)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"check": "0" * 64}, "does not know you"),
        ({"check": "é"}, "does not know you"),
        ({"order": ""}, "which response stood first"),
        ({"task": "t9"}, "no task t9"),
        ({"task": "t2"}, "not given to you"),
        ({"verdict": ""}, "choose one of the answers"),
        ({"verdict": "first"}, "strength belongs to choice"),
        ({"verdict": "first/great"}, "no strength"),
        ({"verdict": "skip"}, "say why you skip"),
        ({"editing": "first", "edited": "x" * (LONGEST_EDIT + 1)}, "the edit has more than"),
        ({"editing": "first", "edited": " "}, "the edit is empty"),
    ],
)
def test_what_cannot_be_taken_changes_nothing_and_says_why(
    store: Store, changes: dict[str, str], reason: str
) -> None:
    client = visitor(store)
    answer = client.post("/judge", data={**form(client, verdict="first/better"), **changes})
    assert answer.status_code == 409 and reason in answer.text
    assert store.judgments() == []


def test_an_edit_of_ten_megabytes_is_refused_before_it_is_read(store: Store) -> None:
    client = visitor(store)
    fields: dict[str, Any] = form(client, verdict="first/better", editing="first")
    answer = client.post("/judge", data={**fields, "edited": "x" * 10_000_000})
    assert answer.status_code == 413 and store.judgments() == []


def test_an_edit_of_the_length_that_is_allowed_gets_through_in_any_script(store: Store) -> None:
    client = visitor(store)
    fields = form(client, verdict="first/better", editing="first", edited="字" * LONGEST_EDIT)
    assert client.post("/judge", data=fields).status_code == 200
    (made,) = store.judgments()
    assert made.edited is not None and len(made.edited[0].content) == LONGEST_EDIT


@pytest.mark.parametrize(
    "body", ["[", "[" * 100_000, '{"before": "a"}', '{"before": "a", "after": "\\ud83d"}', "1"]
)
def test_a_diff_of_nothing_is_refused(store: Store, body: str) -> None:
    client = visitor(store)
    assert client.post("/diff", content=body, headers=own(client)).status_code == 400


def test_a_page_from_before_the_order_changed_is_refused(store: Store) -> None:
    client = visitor(store)
    fields = form(client, verdict="first/better")
    fields["order"] = "b" if fields["order"] == "a" else "a"
    answer = client.post("/judge", data=fields)
    assert answer.status_code == 409 and "the other way round" in answer.text
    assert store.judgments() == []


def test_without_a_link_nobody_sees_a_task(store: Store) -> None:
    site = Site("tiny, round 1", (HOST,))
    client = TestClient(create_app(store, site), base_url=f"http://{HOST}")
    for path in ("/", "/a/guessed", "/docs", "/openapi.json"):
        answer = client.get(path)
        assert answer.status_code in (403, 404) and "question" not in answer.text
    assert client.post("/judge", data={"task": "t0", "verdict": "tie"}).status_code == 409
    assert store.judgments() == []


def test_a_closed_round_takes_no_judgment(store: Store) -> None:
    client = visitor(store)
    fields = form(client, verdict="tie")
    store.close()
    answer = client.post("/judge", data=fields)
    assert answer.status_code == 409 and "closed" in answer.text
