"""What the endpoint engine promises: vLLM's samples over HTTP, patience, and never another model.

pytest tests/test_sampling_openai.py
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import BadInput, StepFailed
from posttrain.generation import Request, Sample
from posttrain.models.chat import end_token_ids, load_tokenizer, render_prompt
from posttrain.sampling.openai_client import pause_seconds
from posttrain.sampling.openai_engine import OpenAIEngine
from posttrain.sampling.openai_models import alone
from posttrain.sampling.service import open_engine
from posttrain.sampling.shards import generate_in_shards
from posttrain.sampling.vllm_engine import VllmEngine
from posttrain.settings.engines import OpenAIEngineSettings, VllmEngineSettings
from posttrain.steps import guard
from tests.test_sampling_vllm import BASE, SCHEMA, needs_vllm, request

START_SECONDS = 500
KEY = "key-of-the-test"
SERVE = (
    *("--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--disable-log-stats"),
    # A prompt in chunks would make a request's own seed fail on a processor.
    "--no-enable-chunked-prefill",
    *("--generation-config", "vllm", "--served-model-name", "tiny", "--api-key", KEY),
    "--structured-outputs-config",
    '{"backend": "guidance", "disable_any_whitespace": true}',
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_SERVER_DEV_MODE": "1",
}


def settings_for(url: str, **fields: object) -> OpenAIEngineSettings:
    values = {"url": url, "timeout_seconds": 300, "retries": 0, **fields}
    return OpenAIEngineSettings.model_validate(values)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The url of a real vLLM server with the tiny base; it dies with this process."""
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    # vllm-cpu's own `vllm serve` does not find its version; this is what it runs.
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", *SERVE]
    command += ["--model", str(BASE), "--port", str(port)]
    life_read, life = os.pipe()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(life_read), *command],
            stdout=log,
            stderr=log,
            pass_fds=[life_read],
            start_new_session=True,
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
        )
    os.close(life_read)
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}/health", folder / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.close(life)
        process.wait()


def wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            opener.open(url, timeout=5).close()
            return
        except OSError:
            tail = log.read_text(errors="replace")[-3000:]
            assert process.poll() is None and time.monotonic() < deadline, tail
            time.sleep(0.2)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers on this machine are asked directly."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the variable that holds the server's key."""
    monkeypatch.setenv("POSTTRAIN_TEST_KEY", KEY)
    return "POSTTRAIN_TEST_KEY"


def check_same(got: list[list[Sample]], expected: list[list[Sample]]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.text, one.token_ids) == (other.text, other.token_ids)
            assert one.finish_reason == other.finish_reason
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@needs_vllm
def test_an_endpoint_gives_the_samples_of_the_vllm_engine(served: str, key: str) -> None:
    requests = [
        *(request(i, id=f"sampled-{i}", n=4) for i in range(5)),
        *(request(i, id=f"sharp-{i}", n=2, temperature=0.6, top_p=0.8) for i in range(2)),
        *(request(i, id=f"greedy-{i}", temperature=0.0, logprobs=True) for i in range(3)),
        request(0, id="logprobs", n=3, logprobs=True),
        request(0, id="choices", n=6, choices=("yes", "no")),
        request(1, id="schema", n=6, json_schema=SCHEMA),
    ]
    local = VllmEngine(BASE, VllmEngineSettings(type="vllm", dtype="float32"))
    try:
        expected = local.generate(requests)
        stop = max((sample.text for sample in expected[0]), key=len)[1:3]
        requests.append(request(0, id="stop", n=8, stop=(stop,)))
        expected += local.generate(requests[-1:])
    finally:
        local.close()
    assert any(stop in sample.text for sample in expected[0])
    assert {sample.text for sample in expected[-3]} <= {"yes", "no"}
    for concurrency in (64, 2):
        settings = settings_for(served, api_key_env=key, concurrency=concurrency)
        engine = open_engine(settings, BASE, None)
        check_same(engine.generate(requests), expected)
        check_same(engine.generate(requests[::-1])[::-1], expected)
        engine.close()


@needs_vllm
def test_a_real_server_that_cannot_serve_says_why_in_one_line(
    served: str, key: str, tmp_path: Path
) -> None:
    engine = OpenAIEngine(BASE, settings_for(served, api_key_env=key, model="tiny"))
    with pytest.raises(BadInput, match=r"refused request r0: HTTP 400: .*nonsense"):
        engine.generate([request(0, json_schema={"type": "nonsense"}), request(1)])
    engine.close()
    with pytest.raises(BadInput, match=r"HTTP 401: .*; name the variable .* engine.api_key_env"):
        OpenAIEngine(BASE, settings_for(served))
    with pytest.raises(BadInput, match="serves tiny; expected large"):
        OpenAIEngine(BASE, settings_for(served, api_key_env=key, model="large"))
    with pytest.raises(BadInput, match=r"HTTP 404: .*; vLLM's url ends in /v1"):
        OpenAIEngine(BASE, settings_for(served.removesuffix("/v1"), api_key_env=key))
    other = tmp_path / "other"
    other.symlink_to(BASE.parent / "base")
    OpenAIEngine(other, settings_for(served, api_key_env=key)).close()
    with pytest.raises(BadInput, match="runs on a processor, where vLLM cannot reload"):
        OpenAIEngine(BASE, settings_for(served, api_key_env=key, reload=True))


Answer = tuple[int, dict[str, str], object]


class FakeServer:
    """A server that answers /completions from a list; `ok` once that is used up."""

    def __init__(self) -> None:
        self.models: object = {
            "data": [{"id": "tiny", "root": str(BASE.resolve()), "max_model_len": 256}]
        }
        self.answers: list[Answer | Callable[[], Answer]] = []
        self.routes: dict[str, Answer] = {}
        self.asked: list[tuple[str, str, dict[str, Any], dict[str, str]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parsed = json.loads(body) if body else {}
                fake.asked.append((self.command, self.path, parsed, dict(self.headers)))
                status, headers, content = fake.answer(self.path, parsed)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _answer

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        if path in self.routes:
            return self.routes[path]
        if path == "/v1/models":
            return 200, {}, self.models
        if self.answers:
            first = self.answers.pop(0)
            return first if isinstance(first, tuple) else first()
        return 200, {}, completion(body.get("n", 1))

    def completions(self) -> list[dict[str, Any]]:
        return [body for _, path, body, _ in self.asked if path == "/v1/completions"]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    opened = FakeServer()
    yield opened
    opened.close()


TOKENIZER = load_tokenizer(BASE)
END = min(end_token_ids(TOKENIZER))
IDS = [*TOKENIZER.encode("yes", add_special_tokens=False), END]


def completion(n: int, **fields: object) -> dict[str, object]:
    one = {"finish_reason": "stop", "token_ids": IDS, "text": "", "logprobs": None, **fields}
    return {"choices": [{"index": i, **one} for i in range(n)]}


def test_a_request_says_all_that_a_server_could_decide_otherwise(
    fake: FakeServer, key: str
) -> None:
    fake.answers = [(200, {}, completion(1))]
    engine = OpenAIEngine(BASE, settings_for(fake.url + "/", api_key_env=key))
    asked = request(0, temperature=0.0, n=3, stop=("x",))
    samples = engine.generate([asked])
    assert [(one.text, one.token_ids) for one in samples[0]] == [("yes", tuple(IDS))] * 3
    (body,) = fake.completions()
    assert body == {
        "model": "tiny",
        "prompt": render_prompt(TOKENIZER, asked.messages),
        "return_token_ids": True,
        "skip_special_tokens": False,
        **{"n": 1, "seed": 0, "temperature": 0.0, "top_p": 1.0, "max_tokens": 16},
        **{"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
        **{"presence_penalty": 0.0, "frequency_penalty": 0.0},
        **{"stop": ["x"], "stop_token_ids": sorted(end_token_ids(TOKENIZER)), "logprobs": None},
    }
    sent = [headers.get("Authorization") for *_, headers in fake.asked]
    assert sent == [f"Bearer {KEY}"] * 2


def test_a_missing_key_is_told_by_the_name_of_its_variable(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("", "  ", "a\nb", "sécret"):
        monkeypatch.setenv("POSTTRAIN_TEST_KEY", value)
        with pytest.raises(BadInput, match="POSTTRAIN_TEST_KEY holds no key") as caught:
            OpenAIEngine(BASE, settings_for(fake.url, api_key_env="POSTTRAIN_TEST_KEY"))
        assert "cret" not in str(caught.value)
    assert fake.asked == []


def slow() -> Answer:
    time.sleep(3)
    return 200, {}, completion(2)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((503, {}, b"starting"), "HTTP 503: starting"),
        ((500, {}, {"error": {"message": "EngineCore died"}}), "HTTP 500: EngineCore died"),
        ((429, {"Retry-After": "0"}, b""), "HTTP 429: nothing"),
        (slow, "no answer within 1 s"),
        ((200, {}, b"<html>busy</html>"), "makes no sense: <html>busy</html>"),
        ((200, {}, b""), "makes no sense: nothing"),
        ((200, {}, {"choices": None}), "makes no sense"),
        ((200, {}, completion(3)), "3 responses in place of 2"),
        ((200, {}, completion(1)), "1 responses in place of 2"),
        ((200, {}, completion(2, finish_reason="abort")), "makes no sense"),
        ((200, {}, completion(2, finish_reason=None)), "makes no sense"),
    ],
)
def test_what_may_pass_is_asked_again_and_told_when_it_does_not(
    fake: FakeServer, answer: Answer | Callable[[], Answer], reason: str
) -> None:
    fake.answers = [answer]
    settings = settings_for(fake.url, retries=1, timeout_seconds=1)
    samples = OpenAIEngine(BASE, settings).generate([request(0)])
    assert [one.text for one in samples[0]] == ["yes", "yes"]
    first, second = fake.completions()
    assert first == second
    fake.answers = [answer]
    with pytest.raises(StepFailed) as caught:
        OpenAIEngine(BASE, settings.model_copy(update={"retries": 0})).generate([request(0)])
    told = str(caught.value)
    assert told.startswith(f"{fake.url}/completions did not answer request r0 in 1 tries")
    assert reason in told
    assert "\n" not in told


def test_a_server_is_left_alone_as_long_as_it_says(fake: FakeServer) -> None:
    fake.answers = [(429, {"Retry-After": "2"}, b"")]
    began = time.monotonic()
    OpenAIEngine(BASE, settings_for(fake.url, retries=1)).generate([request(0)])
    assert time.monotonic() - began >= 2
    assert len(fake.completions()) == 2


def test_pauses_double_up_to_a_minute_and_do_not_depend_on_chance() -> None:
    pauses = [pause_seconds("request r0", number) for number in range(40)]
    assert pauses == [pause_seconds("request r0", number) for number in range(40)]
    assert all(0.75 * 2**i <= 2 * pauses[i] <= 1.25 * 2**i for i in range(6))
    assert all(45 <= pause <= 75 for pause in pauses[7:])
    assert pause_seconds("request r1", 0) != pauses[0]


@pytest.mark.parametrize(
    ("content", "fields", "reason"),
    [
        (completion(2, token_ids=None), {}, "must support return_token_ids"),
        (completion(2, token_ids=IDS[:1]), {}, "which ends no turn of this model"),
        (completion(2, finish_reason="length"), {}, "cut request r0 at .* of 16 tokens"),
        (completion(2), {"choices": ("no", "maybe")}, "must support structured_outputs"),
        (completion(2), {"json_schema": SCHEMA}, "must support structured_outputs"),
    ],
)
def test_an_answer_that_asking_again_would_not_mend_is_told_at_once(
    fake: FakeServer, content: object, fields: dict[str, object], reason: str
) -> None:
    fake.answers = [(200, {}, content)]
    with pytest.raises(BadInput, match=reason):
        OpenAIEngine(BASE, settings_for(fake.url, retries=3)).generate([request(0, **fields)])
    assert len(fake.completions()) == 1


def test_a_failure_calls_off_what_is_in_flight_and_keeps_finished_shards(
    fake: FakeServer, tmp_path: Path
) -> None:
    release = threading.Event()

    def held() -> Answer:
        assert release.wait(120)
        return 200, {}, completion(2)

    refused = (400, {}, {"error": {"message": "no such thing"}})
    fake.answers = [(200, {}, completion(2))] * 4 + [refused] + [held] * 3
    requests = [request(i) for i in range(8)]

    def rows(url: str) -> list[tuple[Request, list[Sample]]]:
        engine = OpenAIEngine(BASE, settings_for(url, retries=3, timeout_seconds=100))
        return list(generate_in_shards(engine, requests, 4, tmp_path, lambda *_: None))

    began = time.monotonic()
    try:
        with pytest.raises(BadInput, match=r"refused request r\d: HTTP 400: no such thing"):
            rows(fake.url)
        # What is in flight would be answered after the release, or given up at the timeout.
        assert time.monotonic() - began < 90
        assert not release.is_set()
    finally:
        release.set()
    mended = FakeServer()
    assert len(rows(mended.url)) == 8
    assert len(mended.completions()) == 4
    mended.close()


@pytest.mark.parametrize(
    ("models", "fields", "reason"),
    [
        ([{"id": "a", "root": "/models/a"}], {}, "serves /models/a, but this step samples from"),
        ([{"id": "a", "root": "/models/a"}], {"trust_served_model": True}, "set reload: true"),
        ([{"id": "meta/llama", "root": "meta/llama"}], {}, "set trust_served_model: true"),
        ([{"id": "gpt"}], {}, "serves gpt and does not say from which folder"),
        ([{"id": "a"}, {"id": "b"}], {}, "serves a, b; name one as engine.model"),
        ([], {}, "serves no model"),
    ],
)
def test_an_endpoint_with_another_model_is_refused(
    fake: FakeServer, models: list[object], fields: dict[str, object], reason: str
) -> None:
    fake.models = {"data": models}
    with pytest.raises(BadInput, match=reason) as caught:
        OpenAIEngine(BASE, settings_for(fake.url, **fields))
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_tell_is_trusted_where_asked_to(fake: FakeServer) -> None:
    fake.models = {"data": [{"id": "gpt"}, {"id": "x"}]}
    settings = settings_for(fake.url, trust_served_model=True, model="gpt")
    assert OpenAIEngine(BASE, settings).generate([request(0)])[0][0].text == "yes"


def test_a_prompt_that_the_server_has_no_room_for_is_refused_before_it_is_sent(
    fake: FakeServer,
) -> None:
    fake.models = {"data": [{"id": "a", "root": str(BASE.resolve()), "max_model_len": 40}]}
    for fields, limit in (({}, 40), ({"max_model_len": 30}, 30)):
        engine = OpenAIEngine(BASE, settings_for(fake.url, **fields))
        with pytest.raises(BadInput, match=f"context of {limit} tokens"):
            engine.generate([request(0), request(1, max_tokens=39)])
    assert fake.completions() == []


def test_weights_are_loaded_at_every_opening_by_one_at_a_time(fake: FakeServer) -> None:
    root = fake.url.removesuffix("/v1")
    info = {"vllm_config": {"device_config": {"device": "cuda"}}}
    fake.routes = {
        "/server_info?config_format=json": (200, {}, info),
        "/collective_rpc": (200, {}, {"results": [None]}),
        "/reset_prefix_cache": (200, {}, {"success": True}),
    }
    fake.models = {"data": [{"id": "a", "root": "/models/of/another/run"}]}
    settings = settings_for(fake.url, reload=True)
    engine = OpenAIEngine(BASE, settings)
    posts = [(path, body) for method, path, body, _ in fake.asked if method == "POST"]
    weights = {"method": "reload_weights", "kwargs": {"weights_path": str(BASE.resolve())}}
    assert posts == [("/collective_rpc", weights), ("/reset_prefix_cache", {})]
    opened = threading.Event()

    def wait() -> None:
        with alone(fake.url):
            opened.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not opened.wait(0.5)
    engine.close()
    assert opened.wait(10)
    thread.join()

    fake.routes["/reset_prefix_cache"] = (200, {}, {"success": False})
    with pytest.raises(StepFailed, match="answering somebody else"):
        OpenAIEngine(BASE, settings)
    fake.routes["/server_info?config_format=json"] = (404, {}, b"Not Found")
    with pytest.raises(BadInput, match=f"{root}/server_info.*VLLM_SERVER_DEV_MODE=1"):
        OpenAIEngine(BASE, settings)
    with alone(fake.url):
        pass


def test_a_server_that_is_not_there_fails_the_step() -> None:
    with pytest.raises(StepFailed, match=r"the list of models in 1 tries.*ConnectError"):
        OpenAIEngine(BASE, settings_for("http://127.0.0.1:9/v1"))
