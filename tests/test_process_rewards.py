"""Step-wise scores: a token classifier of the shape that TRL's PRM trainer saves, and who asks it.

pytest tests/test_process_rewards.py
"""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from posttrain.errors import BadInput
from posttrain.hook_rows import HookRows
from posttrain.hooks import Handle
from posttrain.process_rewards import ProcessScorer
from posttrain.settings.judges import NoJudge
from posttrain.settings.plan import Sampling
from posttrain.settings.recipe import RecipeSettings
from posttrain.settings.resources import Resources
from posttrain.settings.stages import HookStage
from posttrain.steps.output import Inputs, Output
from posttrain.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "rounds" / "tiny" / "base"
STEPS = ["2+2=4", "4+1=5", "so 5"]


@pytest.fixture(scope="module")
def scorer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a random head of two labels."""
    folder = tmp_path_factory.mktemp("prm")
    torch.manual_seed(1)
    model = AutoModelForTokenClassification.from_pretrained(BASE, num_labels=2)
    model.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return folder


def test_each_step_is_scored_at_its_separator_by_what_stands_before_it(
    scorer_folder: Path,
) -> None:
    scorer = ProcessScorer(scorer_folder)
    whole = scorer.score("2+2+1?", STEPS)
    assert len(whole) == 3 and all(0 < one < 1 for one in whole)
    for number in (1, 2):
        assert scorer.score("2+2+1?", STEPS[:number]) == pytest.approx(whole[:number], abs=1e-6)
    other = scorer.score("2+2+1?", [STEPS[0], "4+1=6", STEPS[2]])
    assert other[0] == pytest.approx(whole[0], abs=1e-6)
    assert other[1] != pytest.approx(whole[1], abs=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(scorer_folder)
    text = "2+2+1?" + "".join(f"{step}\n" for step in STEPS)
    model = AutoModelForTokenClassification.from_pretrained(scorer_folder).eval()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode("2+2+1?")]])
    assert text.count("\n") == 3 and ids.shape[1] > 1
    with torch.inference_mode():
        for step in STEPS:
            more = tokenizer.encode(step) + tokenizer.encode("\n")
            ids = torch.cat([ids, torch.tensor([more])], 1)
        last = float(model(ids).logits[0, -1].softmax(-1)[1])
    assert last == pytest.approx(whole[-1], abs=1e-6)


def test_what_is_no_process_reward_model_is_refused(scorer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no process reward model can be loaded"):
        ProcessScorer(tmp_path / "nothing")
    three = AutoModelForTokenClassification.from_pretrained(BASE, num_labels=3)
    three.save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path / "three")
    with pytest.raises(BadInput, match=r"two labels .* has 3"):
        ProcessScorer(tmp_path / "three")
    with pytest.raises(BadInput, match="at least one step"):
        ProcessScorer(scorer_folder).score("2?", [])
    with pytest.raises(BadInput, match="tokens of steps"):
        ProcessScorer(scorer_folder).score("2?", ["1+1=2"] * 200)


def test_a_hook_asks_it_as_a_judge(scorer_folder: Path, tmp_path: Path) -> None:
    def work(handle: Handle) -> tuple[int, int] | None:
        grade = handle.judge("steps", {"question": "2+2+1?", "steps": STEPS})
        return None if grade is None else (grade.score, grade.maximum)

    recipe = RecipeSettings(name="math", process_reward="prm")
    stage = HookStage(
        round=1,
        seed=0,
        sampling=Sampling(),
        judge=NoJudge(),
        embedder="minilm",
        recipes={"math": recipe},
    )
    found = {}
    for name, paths in (("with", {"process:math": scorer_folder}), ("without", {})):
        inputs = Inputs(
            {"policy": BASE, **paths},
            Workspace(ROOT),
            Resources(device="cpu"),
            tmp_path / "machine.json",
        )
        out = Output(tmp_path / name, lambda done, total: None)
        with closing(HookRows(inputs, stage, out)) as hooks:
            (found[name],) = hooks.run("math", "test", [("row", work)])
    least = min(ProcessScorer(scorer_folder).score("2+2+1?", STEPS))
    assert found["with"].value == (round(100 * least), 100)
    assert "names no process_reward model" in found["without"].problem
