"""Exports the final model: bf16 safetensors, tokenizer, chat template, model card with lineage.

Knows which policy a run ended with; hashes it before it copies it.

    export_policy(run, Path("my-model"))
"""

import os
import shutil
from pathlib import Path

from posttrain.cards import model_card
from posttrain.controller import Run
from posttrain.errors import BadInput, Damaged
from posttrain.models.chat import load_tokenizer
from posttrain.models.folders import check_model_folder
from posttrain.steps.manifest import check_hashes, read_manifest
from posttrain.tables import read_json


def export_policy(run: Run, out: Path) -> str:
    """Copy the policy that the newest finished gate chose, with a card; which one it was.

    Raises:
        BadInput: no round is finished, or `out` exists.
        Damaged: the model's files differ from their manifest, or were collected.
    """
    gates = [s for s in run.steps.values() if s.name == "gate" and s in run.published()]
    if not gates:
        raise BadInput(f"runs/{run.name}: no round is finished, there is nothing to export")
    if out.exists():
        raise BadInput(f"{out}: already there; name a new folder")
    policy = read_json(run.folder.path(gates[-1]) / "policy.json")
    folder = run.folder.root / str(policy["step"])
    manifest = read_manifest(folder)
    if manifest is None:
        raise Damaged(f"{folder}: the chosen policy is not published")
    wrong = check_hashes(folder, manifest)
    if wrong or (folder / "collected.json").is_file():
        raise Damaged(f"{folder}: {', '.join(wrong) or 'its weights were removed by posttrain gc'}")
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        raise BadInput(f"{partial}: left by an export that was killed; remove it first")
    shutil.copytree(folder / "model", partial)
    if run.plan.chat.template:
        template = run.workspace.find(run.plan.chat.template)
        shutil.copyfile(template, partial / "chat_template.jinja")
    check_model_folder(partial)
    load_tokenizer(partial)
    (partial / "README.md").write_text(model_card(run, str(policy["step"]), manifest))
    os.replace(partial, out)
    return f"{policy['step']}, dev pass rate {100 * float(policy['dev']):.1f} %"
