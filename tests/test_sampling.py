"""What both sampling engines promise, measured on the tiny base.

pytest tests/test_sampling.py
"""

import math
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.errors import BadInput, Damaged, GuardFailed, StepFailed
from posttrain.generation import Engine, Request, Sample
from posttrain.models.chat import decode_response, end_token_ids, load_tokenizer, render_prompt
from posttrain.sampling.draws import draw_tokens, uniforms
from posttrain.sampling.service import open_engine
from posttrain.sampling.shards import generate_in_shards
from posttrain.sampling.transformers_engine import TransformersEngine
from posttrain.settings.engines import TransformersEngineSettings

BASE = Path(__file__).parents[1] / "rounds/tiny/base"
QUESTIONS = ("34+75=?", "Reverse the word lemon.", "7+8=?", "Sort the letters of stone.", "Hi!")
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["score"],
    "additionalProperties": False,
}


def request(place: int = 0, **fields: object) -> Request:
    """A request for one of the questions."""
    question = QUESTIONS[place % len(QUESTIONS)]
    values = {"id": f"r{place}", "seed": 100 * place, "max_tokens": 16, "n": 2, **fields}
    return Request.model_validate({"messages": [{"role": "user", "content": question}], **values})


def engine_of(batch_size: int = 128, model: Path = BASE) -> TransformersEngine:
    return TransformersEngine(model, TransformersEngineSettings(batch_size=batch_size))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    opened = open_engine(TransformersEngineSettings(), BASE, None)
    yield opened
    opened.close()


# ---- draws


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    rows = 20_000
    drawn = draw_tokens(
        probs.log().expand(rows, -1), uniforms(range(rows), 3), torch.ones(rows), torch.ones(rows)
    )
    shares = torch.bincount(drawn, minlength=5) / rows
    # Four standard deviations.
    assert torch.all((shares - probs).abs() <= 4 * (probs * (1 - probs) / rows).sqrt())


def test_neighbouring_seeds_and_steps_draw_independently() -> None:
    rows = 20_000
    numbers = [uniforms(range(seed, seed + rows), step) for seed in (0, 1) for step in (0, 1)]
    table = torch.corrcoef(torch.from_numpy(np.stack(numbers))) - torch.eye(4)
    assert table.abs().max() < 4 / math.sqrt(rows)


def test_temperature_and_top_p_bound_the_draw() -> None:
    rows = 4000
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(rows, -1)
    numbers = uniforms(range(rows), 0)
    one = torch.ones(rows)
    assert set(draw_tokens(logits, numbers, 0 * one, one).tolist()) == {0}
    assert set(draw_tokens(logits, numbers, one, 0.75 * one).tolist()) == {0, 1}
    assert set(draw_tokens(logits, numbers, one, 0.85 * one).tolist()) == {0, 1, 2}
    cold = Counter(draw_tokens(logits, numbers, 0.5 * one, one).tolist())
    assert cold[0] / rows == pytest.approx(0.25 / 0.365, abs=0.03)


def test_damaged_weights_are_noticed(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    model.save_pretrained(tmp_path)
    load_tokenizer(BASE).save_pretrained(tmp_path)
    with pytest.raises(GuardFailed, match="NaN"):
        engine_of(model=tmp_path).generate([request()])


# ---- the transformers engine


def test_batch_size_and_order_change_no_sample(engine: Engine) -> None:
    requests = [request(i, n=1 + i % 3) for i in range(10)]
    expected = engine.generate(requests)
    assert [len(samples) for samples in expected] == [r.n for r in requests]
    assert engine_of(batch_size=3).generate(requests) == expected
    assert engine.generate(requests[::-1])[::-1] == expected
    assert engine.generate(requests[4:5]) == expected[4:5]


def test_n_samples_are_n_seeds(engine: Engine) -> None:
    whole = engine.generate([request(1, n=4, seed=50)])[0]
    single = engine.generate([request(1, n=1, seed=50 + i) for i in range(4)])
    assert whole == [samples[0] for samples in single]
    assert len({sample.token_ids for sample in whole}) > 1


def test_greedy_is_what_transformers_generates(engine: Engine) -> None:
    requests = [request(i, temperature=0.0, n=1, max_tokens=24) for i in range(5)]
    tokenizer = load_tokenizer(BASE)
    model: Any = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
    for asked, samples in zip(requests, engine.generate(requests), strict=True):
        ids = torch.tensor([render_prompt(tokenizer, asked.messages)])
        ends = sorted(end_token_ids(tokenizer))
        output = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=ends)
        assert samples[0].token_ids == tuple(output[0, ids.shape[1] :].tolist())


def check_endings(samples: list[Sample], max_tokens: int) -> None:
    tokenizer = load_tokenizer(BASE)
    ends = end_token_ids(tokenizer)
    for sample in samples:
        ended = sample.token_ids[-1] in ends
        assert sample.finish_reason == ("stop" if ended else "length")
        assert ended or len(sample.token_ids) == max_tokens
        assert not any(token in ends for token in sample.token_ids[:-1])
        assert sample.text == decode_response(tokenizer, sample.token_ids)


def test_the_ending_tells_how_a_response_ended(engine: Engine) -> None:
    requests = [request(i, n=16, max_tokens=4) for i in range(5)]
    samples = [s for samples in engine.generate(requests) for s in samples]
    assert len(samples) == 5 * 16
    check_endings(samples, 4)


def test_a_stop_text_ends_a_response_and_is_left_out(engine: Engine) -> None:
    free = engine.generate([request(0, n=8, max_tokens=24)])[0]
    longest = max(free, key=lambda sample: len(sample.text))
    stop = longest.text[2:4]
    for before, after in zip(
        free, engine.generate([request(0, n=8, max_tokens=24, stop=(stop,))])[0], strict=True
    ):
        assert after.text == before.text.split(stop)[0]
        assert before.token_ids[: len(after.token_ids)] == after.token_ids
        if stop in before.text:
            assert after.finish_reason == "stop"


def test_choices_are_kept_and_drawn_by_probability(engine: Engine) -> None:
    choices = ("yes", "no", "not sure")
    asked = request(2, n=200, choices=choices, logprobs=True)
    samples = engine.generate([asked])[0]
    assert {sample.text for sample in samples} <= set(choices)
    assert {sample.finish_reason for sample in samples} == {"stop"}
    for text, count in Counter(sample.text for sample in samples).items():
        logprobs = next(sample.logprobs for sample in samples if sample.text == text)
        assert logprobs is not None
        share = math.exp(sum(logprobs))
        assert count / 200 == pytest.approx(share, abs=4 * math.sqrt(share / 200))


def test_choices_mix_with_free_requests(engine: Engine) -> None:
    free, bounded = request(0), request(0, choices=("a", "ab"))
    together = engine.generate([free, bounded, free])
    assert together[0] == together[2] == engine.generate([free])[0]
    assert {sample.text for sample in together[1]} <= {"a", "ab"}


def test_logprobs_are_the_models_own(engine: Engine) -> None:
    asked = request(1, n=1, temperature=0.7, top_p=0.9, logprobs=True)
    sample = engine.generate([asked])[0][0]
    tokenizer = load_tokenizer(BASE)
    prompt = render_prompt(tokenizer, asked.messages)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sample.token_ids]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(sample.token_ids)[:, None])[:, 0]
    assert sample.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_tools_reach_the_prompt(engine: Engine) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    with_tool = request(0, temperature=0.0, n=1, tools=(tool,), logprobs=True)
    without = request(0, temperature=0.0, n=1, logprobs=True)
    (a,), (b,) = engine.generate([with_tool, without])
    assert a.logprobs != b.logprobs


def test_the_engine_computes_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    opened = open_engine(TransformersEngineSettings(), BASE, None, "cpu")
    assert len(opened.generate([request(0)])[0]) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match=r"resources\.device is cuda"):
        open_engine(TransformersEngineSettings(), BASE, None, "cuda")


def test_a_prompt_without_room_is_bad_input(engine: Engine) -> None:
    with pytest.raises(BadInput, match=r"request r3: \d+ prompt tokens and max_tokens 250"):
        engine.generate([request(0), request(3, max_tokens=250)])


def test_a_choice_without_room_is_bad_input(engine: Engine) -> None:
    with pytest.raises(BadInput, match="request r0: the choice"):
        engine.generate([request(0, choices=("a very long choice",), max_tokens=2)])


def test_a_schema_is_refused_by_name(engine: Engine) -> None:
    with pytest.raises(BadInput, match=r"request r1.*json_schema"):
        engine.generate([request(1, json_schema=SCHEMA)])


def test_bfloat16_runs() -> None:
    settings = TransformersEngineSettings(dtype="bfloat16")
    samples = TransformersEngine(BASE, settings).generate([request(0)])[0]
    assert len(samples) == request(0).n
    check_endings(samples, 16)


def test_a_folder_without_a_model_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="tokenizer"):
        open_engine(TransformersEngineSettings(), tmp_path, None)


# ---- shards


class CrashingEngine:
    """A real engine that dies after some calls."""

    def __init__(self, engine: Engine, calls: int) -> None:
        self.engine, self.left = engine, calls

    def generate(self, requests: list[Request]) -> list[list[Sample]]:
        if self.left == 0:
            raise StepFailed("crash")
        self.left -= 1
        return self.engine.generate(requests)

    def restart(self) -> None:
        raise StepFailed("it stays dead")


class SmallEngine:
    """A real engine that dies of more than `most` requests at once, until it is restarted."""

    def __init__(self, engine: Engine, most: int) -> None:
        self.engine, self.most, self.dead, self.restarts = engine, most, False, 0

    def generate(self, requests: list[Request]) -> list[list[Sample]]:
        assert not self.dead
        if len(requests) > self.most:
            self.dead = True
            raise StepFailed("out of memory")
        return self.engine.generate(requests)

    def restart(self) -> None:
        self.dead, self.restarts = False, self.restarts + 1


def test_shards_survive_a_crash(engine: Engine, tmp_path: Path) -> None:
    requests = [request(i, logprobs=True) for i in range(10)]
    expected = list(zip(requests, engine.generate(requests), strict=True))
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    with pytest.raises(StepFailed):
        list(generate_in_shards(CrashingEngine(engine, 2), requests, 4, tmp_path, progress))
    assert told == [(4, 10), (8, 10)]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 2
    resumed = list(generate_in_shards(CrashingEngine(engine, 1), requests, 4, tmp_path, progress))
    assert [(r, [s.text for s in samples]) for r, samples in resumed] == [
        (r, [s.text for s in samples]) for r, samples in expected
    ]
    assert told[2:] == [(4, 10), (8, 10), (10, 10)]
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}.items()
    again = generate_in_shards(CrashingEngine(engine, 0), requests, 4, tmp_path, progress)
    assert list(again) == resumed


def test_a_shard_that_is_too_much_is_done_in_parts(engine: Engine, tmp_path: Path) -> None:
    requests = [request(i) for i in range(10)]
    small = SmallEngine(engine, 3)
    found = list(generate_in_shards(small, requests, 5, tmp_path / "a", lambda done, total: None))
    assert [samples for _, samples in found] == engine.generate(requests)
    assert small.restarts == 2
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_a_shard_that_cannot_be_done_is_named_and_finished_ones_stay(
    engine: Engine, tmp_path: Path
) -> None:
    requests = [request(i) for i in range(16)]
    list(generate_in_shards(engine, requests[:8], 8, tmp_path, lambda done, total: None))
    broken = SmallEngine(engine, 0)
    pairs = generate_in_shards(broken, requests, 8, tmp_path, lambda done, total: None)
    assert [next(pairs)[0].id for _ in range(8)] == [f"r{i}" for i in range(8)]
    with pytest.raises(StepFailed, match=r"shard 00001-\w+: out of memory; 2 requests at once"):
        next(pairs)
    assert broken.restarts == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_the_next_shard_is_generated_while_the_last_one_is_worked_on(
    engine: Engine, tmp_path: Path
) -> None:
    asked = threading.Event()
    requests = [request(i) for i in range(4)]

    class Telling(CrashingEngine):
        def generate(self, requests: list[Request]) -> list[list[Sample]]:
            if requests[0].id == "r2":
                asked.set()
            return super().generate(requests)

    telling = Telling(engine, 9)
    pairs = generate_in_shards(telling, requests, 2, tmp_path, lambda done, total: None)
    next(pairs)
    assert asked.wait(30)
    pairs.close()
    # What was at work when the caller left is paid for, and kept.
    assert len(list(tmp_path.iterdir())) == 2


def test_other_requests_never_meet_an_old_shard(engine: Engine, tmp_path: Path) -> None:
    def texts(requests: list[Request], size: int) -> list[list[str]]:
        pairs = generate_in_shards(engine, requests, size, tmp_path, lambda done, total: None)
        return [[s.text for s in samples] for _, samples in pairs]

    first = texts([request(0), request(1)], 2)
    hotter = [request(0, temperature=2.0), request(1)]
    assert texts(hotter, 2) == [[s.text for s in x] for x in engine.generate(hotter)]
    assert texts([request(0), request(1)], 1) == first


def test_a_damaged_shard_is_named(engine: Engine, tmp_path: Path) -> None:
    def run() -> list[tuple[Request, list[Sample]]]:
        return list(generate_in_shards(engine, [request(0)], 2, tmp_path, lambda done, total: None))

    run()
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    for text in (whole[:-20], "", whole.replace('"r0"', '"r9"')):
        path.write_text(text)
        with pytest.raises(Damaged, match=path.name):
            run()


def test_equal_ids_are_bad_input(engine: Engine, tmp_path: Path) -> None:
    pairs = generate_in_shards(
        engine, [request(0), request(0)], 1, tmp_path, lambda done, total: None
    )
    with pytest.raises(BadInput, match="r0"):
        list(pairs)
