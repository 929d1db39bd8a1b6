"""Dialogs as tokens: the same from sampling to training, each turn with its end.

pytest tests/test_rendering.py
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from posttrain.errors import GuardFailed
from posttrain.generation import Sample
from posttrain.judgments.preferences import preference_of
from posttrain.judgments.simulated import as_candidate, task_prompt
from posttrain.models.chat import control_tokens, load_tokenizer, render_dialog
from posttrain.responses import Asked, Draw, candidates_of, plain_requests
from posttrain.rows import Candidate, Judgment, Message, Prompt, Strength, Task
from posttrain.sampling.prompts import render_requests
from posttrain.scoring import Dialog, RewardScorer
from posttrain.settings.recipe import RecipeSettings
from posttrain.stages.curate import _scored
from posttrain.training.rankings import read
from posttrain.training.tokens import dpo_tokens, reward_tokens, sft_tokens
from tests.tiny_model import TEMPLATE, make_model, turn

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
DIALOG = [turn("user", "red?"), turn("assistant", "good"), turn("user", "blue?")]
CONTEXT = 512


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with room for tools."""
    return make_model(tmp_path_factory.mktemp("model") / "base", context=CONTEXT)


@pytest.fixture(scope="module")
def reward(base: Path) -> Path:
    """The same with a score head."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.save_pretrained(base.parent / "reward")
    load_tokenizer(base).save_pretrained(base.parent / "reward")
    return base.parent / "reward"


def asked() -> Asked:
    """A request made of a prompt that shows a tool."""
    prompt = Prompt(id="p", prompt=tuple(DIALOG), capability="c", tools=(TOOL,))
    recipes = {"c": RecipeSettings(name="c", max_tokens=16)}
    (one,) = plain_requests([prompt], recipes, Draw(0, 1), n=2, temperature=1.0)
    return one


def sampled_ids(base: Path, text: str) -> list[int]:
    """The prompt as an engine reads it, then the tokens of a response with its end."""
    tokenizer = load_tokenizer(base, TEMPLATE)
    (prompt,) = render_requests(tokenizer, [asked().request], CONTEXT)
    return [*prompt, *tokenizer.encode(f"{text}<|eot_id|>", add_special_tokens=False)]


def sampled() -> list[Candidate]:
    """Two responses to the request."""
    texts = ("good red", "bad")
    samples = [Sample(text=text, token_ids=(1,), finish_reason="stop") for text in texts]
    return candidates_of(asked(), samples, "model")


def test_tools_are_the_same_tokens_in_sampling_and_training(base: Path) -> None:
    good, bad = sampled_ids(base, "good red"), sampled_ids(base, "bad")
    tokenizer = load_tokenizer(base, TEMPLATE)
    assert '"add"' in str(tokenizer.decode(good))

    chosen = sampled()[0].model_copy(
        update={"prompt": [m.to_json() for m in DIALOG], "round": 1, "pass_rate": 1.0}
    )
    example = _scored(chosen, 1).example
    assert sft_tokens(tokenizer, [example], CONTEXT)[0][0]["input_ids"].tolist() == good

    task = Task(
        parents=(asked().prompt.id,),
        prompt=asked().prompt.prompt,
        a=(Message(role="assistant", content="bad"),),
        b=(Message(role="assistant", content="good red"),),
        tools=asked().prompt.tools,
        model_a="one",
        model_b="two",
        capability="math",
        batch="round-2",
    )
    answer = Judgment(task=task.id, choice="b", strength=Strength.BETTER, annotator="x")
    pair = preference_of(task, [answer])
    assert pair is not None
    rows = dpo_tokens(tokenizer, [pair], CONTEXT, True)[0]
    assert rows[0]["chosen_ids"].tolist() == good
    assert rows[0]["rejected_ids"].tolist() == bad
    ranking = read(reward_tokens(tokenizer, [pair], CONTEXT)[0][0])
    assert [ranking.prompt + response for response in ranking.responses] == [good, bad]
    assert as_candidate(task, "a").tools == task_prompt(task).tools == (TOOL,)


def test_tools_are_the_same_tokens_in_sampling_and_scoring(
    base: Path, reward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = RewardScorer(reward, TEMPLATE)
    ids = torch.tensor(
        [
            sampled_ids(base, "good red"),
        ]
    )
    with torch.inference_mode():
        expected = scorer._forward.model(ids, use_cache=False).logits[0, 0].item()
    row = sampled()[0]
    with_tools, without = scorer.score([Dialog(row.messages, row.tools), Dialog(row.messages)])
    assert with_tools == pytest.approx(expected, abs=1e-5)
    assert without != pytest.approx(expected, abs=1e-5)


def test_a_template_that_teaches_no_end_is_refused(base: Path, tmp_path: Path) -> None:
    template = tmp_path / "endless.jinja"
    end = "            {{- '<|eot_id|>' }}\n        {%- endgeneration %}"
    moved = "        {%- endgeneration %}\n            {{- '<|eot_id|>' }}"
    text = TEMPLATE.read_text()
    assert end in text
    template.write_text(text.replace(end, moved))
    dialog = [*DIALOG, Message(role="assistant", content="good")]
    with pytest.raises(GuardFailed, match=r"end in .*good.*could never learn to stop"):
        render_dialog(load_tokenizer(base, template), dialog)
    render_dialog(load_tokenizer(base, TEMPLATE), dialog)


def test_ordinary_added_tokens_are_no_control_tokens(base: Path) -> None:
    tokenizer = load_tokenizer(base, TEMPLATE)
    before = control_tokens(tokenizer)
    assert {"<|eot_id|>", "<|start_header_id|>", "<|pad|>"} <= set(before)
    tokenizer.add_tokens(["    ", "<|eom_id|>"])
    assert set(control_tokens(tokenizer)) == {*before, "<|eom_id|>"}
