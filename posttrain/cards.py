"""The model card of an exported policy: what it was made from, and how it measured.

Knows what a reader of a model needs; reads manifests and rates, never weights.

    model_card(run, "round-6/dpo", manifest)
"""

import yaml

from posttrain.controller import Run
from posttrain.errors import Damaged
from posttrain.steps.manifest import Manifest, read_manifest
from posttrain.tables import read_json


def model_card(run: Run, address: str, manifest: Manifest) -> str:
    """A Hugging Face model card with front matter, lineage and measured rates.

    Raises:
        Damaged: the policy's round has no measure.
    """
    at = address.partition("/")[0]
    measured = run.folder.root / at / "measure"
    if read_manifest(measured) is None:
        raise Damaged(f"{measured}: the measure of {address} is not published")
    rates = read_json(measured / "rates.json")
    members = _members(run, address, manifest)
    head: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": list(members) or [run.plan.base],
        "base_model_relation": "merge" if members else "finetune",
        "tags": ["posttrain", "dpo" if address.endswith("/dpo") else "sft"],
    }
    lines = [
        "---",
        *yaml.safe_dump(head, sort_keys=False, allow_unicode=True).splitlines(),
        "---",
        "",
        f"# {run.plan.title or run.name}: {address}",
        "",
        f"Made from `{run.plan.base}` by `posttrain`, plan `{run.plan_name}`, step `{address}` "
        f"(fingerprint `{manifest.fingerprint[:16]}`, {manifest.finished}).",
    ]
    if run.plan.simulated:
        lines += ["", f"**Simulated:** {run.plan.simulated}."]
    if members:
        lines += ["", "Its weights are the average of these models' (section 4.1.5):", ""]
        lines += [f"- `{place}` (fingerprint `{digest}`)" for place, digest in members.items()]
    lines += ["", "## Pass rates on held-out prompts", "", "| split | mode | capability | rate |"]
    lines.append("|---|---|---|---|")
    for split, modes in rates.items():
        for mode, found in modes.items():
            for capability, rate in found.items():
                if isinstance(rate, dict) and "low" in rate:
                    interval = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}"
                    value = f"{100 * rate['value']:.1f} % ({interval})"
                    lines.append(f"| {split} | {mode} | {capability} | {value} |")
    lines += ["", "Choices were made on dev; test was only reported.", "", "## Lineage", ""]
    lines += _lineage(run, address)
    return "\n".join(lines) + "\n"


def _members(run: Run, address: str, manifest: Manifest) -> dict[str, str]:
    """Address → fingerprint of the models that were averaged; empty where none were."""
    chosen = run.folder.root / address / "soup.json"
    joined = set(read_json(chosen)["members"]) if chosen.is_file() else None
    found = {}
    for name, place in manifest.inputs.items():
        kind, _, member = name.partition(":")
        if kind == "member" and (joined is None or member in joined):
            one = read_manifest(run.folder.root / place.removesuffix("/model"))
            found[place.removesuffix("/model")] = one.fingerprint[:16] if one else "unknown"
    return found


def _lineage(run: Run, address: str) -> list[str]:
    """Every step that the model depends on, nearest first."""
    wanted = [address]
    seen: dict[str, str] = {}
    while wanted:
        one = wanted.pop(0)
        manifest = read_manifest(run.folder.root / one)
        if one in seen or manifest is None:
            continue
        seen[one] = manifest.fingerprint[:16]
        wanted += [place.removesuffix("/model") for place in manifest.inputs.values()]
    return [f"- `{place}` `{digest}`" for place, digest in seen.items()]
