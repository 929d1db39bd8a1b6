"""Judges: rules, a local model and a server's chat; what is no grade stays unscored.

pytest tests/test_judging.py
"""

import importlib.util
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from posttrain.curation.quality import normal_tags
from posttrain.embedding import Embedder, embedder_folder
from posttrain.errors import BadInput
from posttrain.hooks import Grade
from posttrain.judging.askers import ChatAsker, EngineAsker, Question, remembered
from posttrain.judging.contract import Judged, Opinion
from posttrain.judging.model import ModelJudge, read_grade, read_tags
from posttrain.judging.rubrics import render_rubric
from posttrain.judging.simulated import SimulatedJudge
from posttrain.rows import Candidate, Judgment, Message, Prompt
from posttrain.settings.engines import TransformersEngineSettings
from posttrain.settings.judges import EndpointJudge, VllmJudge
from posttrain.settings.resources import Resources
from posttrain.settings.stages import LabelStage
from posttrain.stages import label
from posttrain.steps.fingerprint import ContentHashes
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows, write_rows
from posttrain.workspace import Workspace, load_functions

ROOT = Path(__file__).parent.parent
BASE = ROOT / "rounds/tiny/base"
DATA_QUALITY = ROOT / "data_quality"


def judged(
    response: str, asked: str = "q", capability: str = "math", passed: bool = True
) -> Judged:
    question = Message(role="user", content=asked)
    candidate = Candidate(
        id="p/0",
        prompt_id="p",
        messages=(question, Message(role="assistant", content=response)),
        seed=1,
        finish_reason="stop",
        num_tokens=1,
        model="m",
    )
    return Judged(candidate, Prompt(prompt=(question,), capability=capability), passed)


def rubric(name: str) -> Path:
    return DATA_QUALITY / "rubrics" / f"{name}.jinja"


def test_the_simulated_judge_grades_by_a_file(tmp_path: Path) -> None:
    path = tmp_path / "judge_rules.py"
    path.write_text(
        "def grade(prompt, response, passed):\n"
        "    return {'none': None, 'odd': 4}.get(response, 3 if passed else 1)\n"
    )
    judge = SimulatedJudge(path, load_functions)
    rows = [judged("yes"), judged("no", passed=False), judged("none")]
    label = "simulated judge"
    assert judge.grade(rows) == [
        Opinion(Grade(3, 3, label)),
        Opinion(Grade(1, 3, label)),
        Opinion(),
    ]
    with pytest.raises(BadInput, match="answered 4 for p/0"):
        judge.grade([judged("odd")])
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(BadInput, match="expected a function grade"):
        SimulatedJudge(tmp_path / "empty.py", load_functions)


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("2", 2),
        (" 3\n", 3),
        ("4", None),
        ("0", None),
        ("2.5", None),
        ("It is a 2", None),
        ("", None),
    ],
)
def test_only_a_grade_alone_is_one(answer: str, grade: int | None) -> None:
    assert read_grade(answer, (1, 2, 3)) == grade
    assert read_grade(None, (1, 2, 3)) is None


def test_tags_are_a_list_or_nothing() -> None:
    assert read_tags('{"tags": ["Sum", " sum ", "table", ""]}') == ("Sum", "sum", "table")
    for answer in (
        None,
        "",
        "sum, table",
        '{"tags": []}',
        '{"tags": "sum"}',
        '{"tags": [1]}',
        "[]",
    ):
        assert read_tags(answer) is None


def test_a_local_model_answers_in_the_form_asked_for_and_once(tmp_path: Path) -> None:
    engine = TransformersEngineSettings()
    hashes = ContentHashes(tmp_path / "hashes.json")
    asker = remembered(EngineAsker(BASE, engine, hashes), tmp_path / "answers")
    questions = [
        Question("rate 12+34=46", ("1", "2", "3")),
        Question("word " * 4000, ("1", "2")),
        Question("rate 7", ("no", "yes")),
    ]
    first = asker.ask(questions)
    assert first[0] in {"1", "2", "3"}
    assert first[1:] == [None, first[2]]
    assert first[2] in {"no", "yes"}
    asker.close()
    again = remembered(EngineAsker(BASE, engine, hashes), tmp_path / "answers")
    files = set((tmp_path / "answers").iterdir())
    assert again.ask([*questions[::-1], *questions]) == [*first[::-1], *first]
    assert set((tmp_path / "answers").iterdir()) == files
    assert getattr(again, "_asker")._engine is None, "nothing new was asked"  # noqa: B009


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None and os.environ.get("CI") != "true",
    reason="vllm is not installed",
)
def test_a_judge_in_vllm_answers_within_the_rubrics_scale(tmp_path: Path) -> None:
    """With random weights: what it says means nothing, but it is a grade."""
    model = AutoModelForCausalLM.from_pretrained(BASE)
    model.config.max_position_embeddings = 2048
    shutil.copytree(BASE, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    settings = VllmJudge(type="vllm", model="model", tags=True)
    hashes = ContentHashes(tmp_path / "hashes.json")
    asker = EngineAsker(tmp_path / "model", settings.engine, hashes)
    judge = ModelJudge(remembered(asker, tmp_path / "judgments"), rubric, settings, "judge model")
    rows = [judged("46", "12+34=?"), judged("x = 1", "Set x.", "code"), judged("y" * 9000)]
    try:
        found = judge.grade(rows)
    finally:
        judge.close()
    assert [one.grade.maximum if one.grade else None for one in found] == [3, 2, None]
    assert all(one.grade is None or 1 <= one.grade.score <= one.grade.maximum for one in found)
    # Tags follow a schema; one that was cut at its last token is no list, and unscored.
    assert all(one.tags is None or len(one.tags) <= 12 for one in found)
    again = ModelJudge(remembered(Silent(asker), tmp_path / "judgments"), rubric, settings, "j")
    assert [one.tags for one in again.grade(rows)] == [one.tags for one in found]


class Silent:
    """An asker that must not be asked."""

    def __init__(self, asker: EngineAsker) -> None:
        self.identity = asker.identity

    def ask(self, questions: Any) -> list[str | None]:
        raise AssertionError("asked again")

    def close(self) -> None:
        pass


def test_a_model_judge_asks_each_capabilitys_rubric(tmp_path: Path) -> None:
    asked: list[Question] = []

    class Fake:
        identity = "fake"

        def ask(self, questions: Any) -> list[str | None]:
            asked.extend(questions)
            return [
                '{"tags": ["Addition", "additions"]}' if one.schema else one.choices[-1]
                for one in questions
            ]

        def close(self) -> None:
            pass

    settings = VllmJudge(type="vllm", model="m", difficulty=True, tags=True)
    judge = ModelJudge(Fake(), rubric, settings, "judge m")
    found = judge.grade([judged("46", "12+34"), judged("x = 1", "set x", "code")])
    assert [one.grade for one in found] == [Grade(3, 3, "judge m"), Grade(2, 2, "judge m")]
    assert [one.difficulty for one in found] == [3, 3]
    assert [one.tags for one in found] == [("Addition", "additions")] * 2
    assert [one.choices for one in asked] == [
        ("1", "2", "3"),
        ("1", "2"),
        *[("1", "2", "3")] * 2,
        (),
        (),
    ]
    assert "[user]\n12+34\n" in asked[0].text
    assert "Bugs" in asked[1].text


@pytest.fixture
def chat() -> Iterator[Callable[[Callable[[dict[str, Any]], str]], str]]:
    """Starts a server that answers a chat by a function; gives its url."""
    servers = []

    def start(answer: Callable[[dict[str, Any]], str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                content = {"choices": [{"message": {"content": answer(body)}}]}
                data = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_that_answers_prose_leaves_rows_unscored(
    chat: Callable[[Callable[[dict[str, Any]], str]], str],
) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> str:
        bodies.append(body)
        text = body["messages"][0]["content"]
        if "zebra" in text:
            return '{"answer": "3"}'
        return "2" if "walrus" in text else "I would give this a 2 out of 3."

    settings = EndpointJudge(type="openai", url=chat(answer), model="big", retries=0)
    judge = ModelJudge(ChatAsker(settings), rubric, settings, "judge big")
    found = judge.grade([judged("zebra"), judged("walrus"), judged("chatty")])
    assert [one.grade.score if one.grade else None for one in found] == [3, 2, None]
    form = bodies[0]["response_format"]["json_schema"]["schema"]
    assert form["properties"]["answer"] == {"type": "string", "enum": ["1", "2", "3"]}
    assert {body["model"] for body in bodies} == {"big"}


def test_a_server_labels_tasks_in_both_orders(
    chat: Callable[[Callable[[dict[str, Any]], str]], str], tmp_path: Path
) -> None:
    def answer(body: dict[str, Any]) -> str:
        text = body["messages"][0]["content"]
        first, second = text.index("right"), text.index("wrong")
        if "prose?" in text:
            return "The first one, I think."
        if "biased?" in text:
            return '{"answer": "2"}'
        return "1" if first < second else "7"

    prompts = ("plain?", "biased?", "prose?")
    rows = [
        {
            "id": f"t{place}",
            "prompt": [{"role": "user", "content": text}],
            "a": [{"role": "assistant", "content": "right"}],
            "b": [{"role": "assistant", "content": "wrong"}],
            "model_a": "x",
            "model_b": "y",
            "capability": "math",
            "batch": "round-2",
        }
        for place, text in enumerate(prompts)
    ]
    write_rows(tmp_path / "tasks/tasks.jsonl", rows)
    server = EndpointJudge(type="openai", url=chat(answer), model="big", retries=0)
    inputs = Inputs(
        {"tasks": tmp_path / "tasks", "rubric": rubric("pair")},
        Workspace(tmp_path),
        Resources(),
        tmp_path / "run/machine.json",
    )
    (tmp_path / "out").mkdir()
    out = Output(tmp_path / "out", lambda done, total: None)
    label.run(inputs, LabelStage(seed=0, judge=server, recipes={}), out)
    books = out.close()
    made = load_rows(tmp_path / "out/judgments.jsonl", Judgment)
    assert [(one.task, one.choice, one.strength, one.annotator) for one in made] == [
        ("t0", "a", "slightly better", "judge big"),
        ("t1", "tie", None, "judge big"),
    ]
    assert books["metrics"] == {
        "judge": "judge big",
        "unscored": 1,
        "flipped": 1,
        "first_share": 0.75,
    }
    (part,) = books["funnel"]
    assert (part["rows_in"], part["rows_out"], part["dropped"]) == (3, 2, {"unscored": 1})


def test_tags_that_mean_the_same_count_once(tmp_path: Path) -> None:
    tags = ["Addition", "addition!", "adding numbers", "Poem", "addition"]
    alone = normal_tags(tags, 0.9)
    assert (alone["Addition"], alone["addition!"], alone["Poem"]) == (
        "addition",
        "addition",
        "poem",
    )
    embed = Embedder(embedder_folder("minilm", tmp_path), tmp_path).embed
    near = normal_tags([*tags, "python code", "code in Python", "python code"], 0.9, embed)
    assert near["code in Python"] == "python code"
    assert near["Poem"] == "poem"


@pytest.mark.parametrize(
    ("name", "scale"), [("general", (1, 2, 3)), ("code", (1, 2)), ("difficulty", (1, 2, 3))]
)
def test_rubrics_render_dialog_response_and_scale(name: str, scale: tuple[int, ...]) -> None:
    variables = {"dialog": [{"role": "user", "content": "1 < 2 & 3?"}], "response": "{{ yes }}"}
    rubric = render_rubric(DATA_QUALITY / "rubrics" / f"{name}.jinja", variables)
    assert rubric.scale == scale
    assert "[user]\n1 < 2 & 3?\n" in rubric.text
    assert "\n{{ yes }}\n" in rubric.text
    assert rubric.text.endswith(", ".join(map(str, scale)) + ".")


def test_a_wrong_rubric_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'dialog' is undefined"):
        render_rubric(DATA_QUALITY / "rubrics" / "code.jinja", {"response": "x"})
    (tmp_path / "bad.jinja").write_text("{% set scale = [3, 1] %}x")
    with pytest.raises(BadInput, match="found \\[3, 1\\]"):
        render_rubric(tmp_path / "bad.jinja", {})
