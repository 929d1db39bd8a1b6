"""Uploading a model folder, to a server that stands for the Hugging Face Hub."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.small_round import posttrain
from tests.tiny_model import make_model

SHA = "0" * 40


class Hub(ThreadingHTTPServer):
    """Repositories by name: whether they are private, and their files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """As much of the Hub's interface as one upload needs."""

    server: Hub

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        self.server.tokens.add(str(self.headers.get("Authorization")))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[1] == "validate-yaml":
            return self._say({"errors": [], "warnings": []})
        if "bad" in self.headers["Authorization"]:
            return self._say({"error": "Invalid username or password."}, 401)
        if parts[1:] == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.server.private:
                return self._say({"url": f"{self.server.url}/{name}"}, 409)
            self.server.private[name] = asked["visibility"] == "private"
            return self._say({"url": f"{self.server.url}/{name}"})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._say({"files": files})
        assert parts[4] == "commit", self.path
        kept = self.server.files.setdefault(f"{name}@{parts[5]}", {})
        for line in body.splitlines():
            one = json.loads(line)
            if one["key"] == "file":
                kept[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
        return self._say(
            {
                "commitUrl": f"{self.server.url}/{name}/commit/{SHA}",
                "commitOid": SHA,
                "success": True,
            }
        )

    def do_GET(self) -> None:
        name = "/".join(self.path.partition("?")[0].strip("/").split("/")[2:4])
        if name not in self.server.private:
            return self._say({"error": "Repository not found"}, 404)
        return self._say(
            {"id": name, "private": self.server.private[name], "sha": SHA, "siblings": []}
        )

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _say(self, answer: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        """Nothing on the screen."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("model") / "model")
    (folder / "README.md").write_text("---\ntags: [posttrain]\n---\n\nA random model.\n")
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def asks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of this process go to the stand-in."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_model_is_uploaded_whole_and_private(hub: Hub, model: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_good",
    }
    command = [sys.executable, "-m", "posttrain", "push", str(model), "me/mine"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == f"{hub.url}/me/mine/commit/{SHA}"
    assert hub.private == {"me/mine": True}
    expected = {path.name: path.read_bytes() for path in model.iterdir()}
    assert hub.files == {"me/mine@main": expected}
    assert hub.tokens == {"Bearer hf_good"}


def test_a_public_repository_has_to_be_asked_for(hub: Hub, asks: None, model: Path) -> None:
    hub.private["me/open"] = False
    ended = posttrain("push", str(model), "me/open")
    assert ended.code == 2
    assert "this repository is public; say --public" in ended.err
    assert hub.files == {}
    assert posttrain("push", str(model), "me/open", "--public").code == 0
    assert posttrain("push", str(model), "me/new", "--public").code == 0
    assert hub.private["me/new"] is False


def test_what_is_no_published_model_is_refused_before_anything_is_said(
    hub: Hub, asks: None, model: Path, tmp_path: Path
) -> None:
    (model / "optimizer.pt").write_bytes(b"pickle")
    ended = posttrain("push", str(model), "me/mine")
    assert (ended.code, "optimizer.pt: belongs to no model" in ended.err) == (2, True)
    (model / "optimizer.pt").unlink()
    (model / "README.md").unlink()
    ended = posttrain("push", str(model), "me/mine")
    assert (ended.code, "expected a model card" in ended.err) == (2, True)
    assert posttrain("push", str(tmp_path / "none"), "me/mine").code == 2
    assert hub.private == {}


def test_a_dry_run_lists_the_files(hub: Hub, asks: None, model: Path) -> None:
    ended = posttrain("push", str(model), "me/mine", "--dry-run")
    assert ended.code == 0
    assert "you alone" in ended.out
    assert "model.safetensors" in ended.out
    assert hub.private == {}


def test_what_the_hub_refuses_is_one_line(
    hub: Hub, asks: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    ended = posttrain("push", str(model), "me/mine")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "the Hub says: " in ended.err
    ended = posttrain("push", str(model), "not a name")
    assert (ended.code, "expected user/name" in ended.err) == (2, True)
