"""The report of a run: one HTML page that opens offline and needs no script.

Reads what steps published, and leaves out what is missing or stale, saying so. Knows no model: it
never loads torch. All text is escaped by the template, for a model may have written it.

    write_report(Run.open(workspace, "tiny"), Path("report.html"))
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from posttrain import ablations
from posttrain.controller import Run
from posttrain.report import figures
from posttrain.report.annotators import annotators_of
from posttrain.report.curation import curation_of
from posttrain.report.figures import Panel
from posttrain.report.models import DIALS, by_level, dials_of, members_of
from posttrain.report.published import Published
from posttrain.report.summary import rounds
from posttrain.steps.manifest import Manifest
from posttrain.tables import json_lines, read_json

_NUM_EXAMPLES = 3
_LONGEST_EXAMPLE = 1500
"""Characters of a response that the page shows."""
_CURVES = (
    ("Reward model: loss", "rm-", "loss"),
    ("SFT: loss", "sft-", "loss"),
    ("DPO: loss", "dpo-", "loss"),
    ("DPO: log-probability of the chosen response", "dpo-", "logps/chosen"),
    ("DPO: margin of implicit rewards", "dpo-", "rewards/margins"),
)
"""Title, the members' name without their variant, column of metrics.jsonl."""

_REWARD_GROUPS = ("capability", "source", "length_difference")
_ONLY_NUMBERS = ("reward_source", "reward_length_difference")
"""Sections too fine for figures: the page has their table alone."""


def write_report(run: Run, path: Path) -> None:
    """Write the page; the file is whole or absent. The same run gives the same bytes.

    Raises:
        Damaged: a published step misses a file.
    """
    html = _render(run)
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(path)


def _render(run: Run) -> str:
    found = Published.of_run(run)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent,
        interval=_interval,
        duration=_duration,
        points=_points,
        round_label=figures.round_label,
    )
    table = rounds(run)
    return environment.get_template("page.html.jinja").render(
        name=run.plan_name,
        run_name=run.name,
        plan=run.plan,
        ticks=found.ticks(),
        rounds=table,
        missing=[row["name"] for row in table if row["rates"] is None],
        stale=sum(row["stale"] for row in table),
        headline=_headline(found, table),
        sections=_sections(found),
        training=_training(found),
        funnels=_funnels(found),
        curation=curation_of(found),
        mix={n: one.metrics["mix"] for n, one in found.of("curate").items()},
        costs=_costs(found),
        examples=_examples(found),
        provenance=_provenance(found),
        difficulty=by_level(found, run.plan),
        members=members_of(found),
        annotators=annotators_of(found),
        dials=dials_of(found),
        dial_names=DIALS,
        ablations=_ablations(run),
        colours=figures,
    )


def _ablations(run: Run) -> dict[str, Any] | None:
    """The comparison with the plan's variations, where `posttrain ablations` has made one."""
    path = run.folder.root / ablations.FILE
    return read_json(path) if path.is_file() else None


def _headline(found: Published, table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """First and newest measure, for the top of the page."""
    measured = [row for row in table if row["rates"] is not None]
    gates = list(found.of("gate").values())
    return {
        "first": measured[0] if measured else None,
        "newest": measured[-1] if measured else None,
        "policy": read_json(found.folder(gates[-1]) / "policy.json") if gates else None,
        "promoted": sum(row["promoted"] is True for row in table[2:]),
        "seconds": sum(row["seconds"] for row in table),
    }


def _sections(found: Published) -> dict[str, dict[str, Any]]:
    """The figures over rounds, each section with the numbers behind it."""
    rates = {n: one.metrics["rates"] for n, one in found.measures().items()}
    accuracy = {n: one.metrics["accuracy"] for n, one in found.of("measure-rm").items()}
    measures = {n: one.metrics["measures"] for n, one in found.of("measure-rm").items()}
    panels = {
        "rates": figures.pass_rates(rates),
        "measures": [*figures.measures(rates), *figures.measures(found.harness())],
        "lengths": figures.lengths(rates) if rates else [],
        "reward": figures.reward_accuracy(accuracy),
        "reward_trust": figures.reward_trust(measures),
        **{f"reward_{name}": figures.reward_groups(measures, name) for name in _REWARD_GROUPS},
    }
    ticks = {
        name: found.ticks()[2:] if name.startswith("reward") else found.ticks() for name in panels
    }
    return {
        name: {
            "panels": [] if name in _ONLY_NUMBERS else _drawn(name, some, ticks[name]),
            "ticks": ticks[name],
            "rows": figures.numbers(some, ticks[name]),
        }
        for name, some in panels.items()
    }


def _drawn(name: str, panels: Sequence[Panel], ticks: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"title": panel.title, "svg": Markup(figures.draw(panel, ticks, f"{name}-{index}"))}
        for index, panel in enumerate(panels)
    ]


def _training(found: Published) -> dict[str, Any]:
    """The curves of every training, rounds overlaid, and what the colours mean."""
    logs: dict[str, dict[int, dict[str, list[dict[str, Any]]]]] = {}
    for stage in ("rm-", "sft-", "dpo-"):
        by_round: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
        for address in found.manifests:
            at, _, name = address.partition("/")
            bootstrap = stage == "sft-" and name == "bootstrap"
            if bootstrap or name.startswith(stage):
                variant = "" if bootstrap else name.removeprefix(stage)
                number = int(at.removeprefix("round-"))
                by_round[number][variant] = list(json_lines(found.root / address / "metrics.jsonl"))
        logs[stage] = dict(by_round)
    panels = [
        figures.curves(title, column, logs[stage], found.last) for title, stage, column in _CURVES
    ]
    numbers = sorted({number for by_round in logs.values() for number in by_round})
    return {
        "panels": _drawn("training", [panel for panel in panels if panel is not None], ()),
        "legend": [(n, figures.round_colour(n, found.last)) for n in numbers],
        "variants": sorted(
            {v for by_round in logs.values() for one in by_round.values() for v in one if v}
        ),
    }


def _funnels(found: Published) -> dict[int, list[dict[str, Any]]]:
    """Round → each part of each step: rows in and out, what was dropped and what changed."""
    funnels: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for address, manifest in found.manifests.items():
        at, _, name = address.partition("/")
        for part in manifest.funnel:
            changed = {rule: count for rule, count in part["changed"].items() if count}
            row = {**part, "step": name, "changed": changed}
            funnels[int(at.removeprefix("round-"))].append(row)
    return dict(sorted(funnels.items()))


def _costs(found: Published) -> dict[str, Any]:
    """Step's name → round → its manifest, and each round's sums."""
    steps: dict[str, dict[int, Manifest]] = {}
    for address, manifest in found.manifests.items():
        at, _, name = address.partition("/")
        steps.setdefault(name, {})[int(at.removeprefix("round-"))] = manifest
    numbers = sorted({number for by_round in steps.values() for number in by_round})
    columns = {n: [by_round[n] for by_round in steps.values() if n in by_round] for n in numbers}
    return {
        "steps": steps,
        "seconds": {n: sum(one.seconds for one in column) for n, column in columns.items()},
        "memory": {n: max(one.peak_memory_mib for one in column) for n, column in columns.items()},
    }


def _examples(found: Published) -> list[dict[str, Any]]:
    """Some test prompts with the greedy response of each round's model.

    Prompts are picked by id, capabilities in turn, so that no result decides what is shown.
    """
    by_prompt: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    wanted: list[str] = []
    for number, manifest in sorted(found.measures().items()):
        path = found.folder(manifest) / "responses.jsonl"
        if not wanted:
            wanted = _in_turn({row["prompt_id"]: row["capability"] for row in _test_greedy(path)})
        for row in _test_greedy(path):
            if row["prompt_id"] in wanted:
                by_prompt[row["prompt_id"]][number] = row
    examples = []
    for prompt_id in wanted:
        answers = by_prompt[prompt_id]
        first = next(iter(answers.values()))
        examples.append(
            {
                "id": prompt_id,
                "capability": first["capability"],
                "prompt": first["messages"][:-1],
                "answers": {n: _answer(row) for n, row in answers.items()},
            }
        )
    return examples


def _test_greedy(path: Path) -> Iterator[dict[str, Any]]:
    return (r for r in json_lines(path) if r["split"] == "test" and r["mode"] == "greedy")


def _in_turn(capabilities: Mapping[str, str]) -> list[str]:
    """The first prompts by id, one of each capability before a second of any."""
    seen: dict[str, int] = defaultdict(int)
    places = []
    for prompt_id, capability in sorted(capabilities.items()):
        places.append((seen[capability], capability, prompt_id))
        seen[capability] += 1
    return [prompt_id for _, _, prompt_id in sorted(places)[:_NUM_EXAMPLES]]


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    text = str(row["messages"][-1]["content"])
    return {
        "text": text[:_LONGEST_EXAMPLE],
        "cut": max(0, len(text) - _LONGEST_EXAMPLE),
        "passed": row["passed"],
        "ended": row["finish_reason"] == "stop",
    }


def _provenance(found: Published) -> dict[str, Any]:
    """Versions, commits, commands and hosts of all steps, and where the final policy comes from."""
    versions: dict[str, set[str]] = defaultdict(set)
    for manifest in found.manifests.values():
        for package, version in manifest.versions.items():
            versions[package].add(version)
    gates = list(found.of("gate").values())
    policy = read_json(found.folder(gates[-1]) / "policy.json") if gates else None
    every = list(found.manifests.values())
    return {
        "versions": {package: sorted(some) for package, some in sorted(versions.items())},
        "commits": sorted({m.git_commit or "no git checkout" for m in every}),
        "commands": list(dict.fromkeys(" ".join(m.argv) for m in every)),
        "hosts": sorted({m.host for m in every}),
        "finished": sorted(m.finished for m in every),
        "policy": policy,
        "model": found.manifests.get(str(policy["step"])) if policy else None,
        "lineage": _lineage(found, str(policy["step"])) if policy else [],
    }


def _lineage(found: Published, address: str) -> list[Manifest]:
    """The policy's step and every published step it depends on, nearest first."""
    wanted, seen = [address], dict[str, Manifest]()
    while wanted:
        one = wanted.pop(0)
        if one in found.manifests and one not in seen:
            seen[one] = found.manifests[one]
            wanted += seen[one].inputs.values()
    return list(seen.values())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(rate: Mapping[str, float]) -> str:
    return f"{100 * rate['low']:.1f}–{100 * rate['high']:.1f}"


def _points(rate: Mapping[str, float]) -> str:
    """A difference of rates with its interval, in percentage points."""
    value, low, high = (100 * rate[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
