"""A plan of two small rounds, and its commands as a user would give them, in this process.

Knows the command line and where a run stands; knows nothing of stages.

    at(new_workspace(tmp_path / "ws"), "round", "1").code
"""

import json
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.cli.main import main

PLAN = """
base: rounds/tiny/base
splits: {dev: 0.3, test: 0.3}
mix: {math: 1.0}
recipes: {math: {k: 2, max_tokens: 16, hooks: [prompts, verify, evaluate]}}
bootstrap: {human: [data/human.jsonl]}
rounds:
  - prompts: [{type: hook, recipe: math, num: 24, options: {levels: [1]}}]
    preferences: [data/pairs.jsonl]
    tasks: [{type: hook, recipe: math, num: 6, options: {levels: [1]}}]
  - prompts: [{type: hook, recipe: math, num: 24, options: {levels: [1]}}]
reward: {max_steps: 1, batch_size: 4, max_length: 128}
sft: {max_steps: 1, batch_size: 4, max_length: 128, average: {previous: 0.1}}
dpo:
  {max_steps: 1, warmup_share: 0, learning_rate: 1e-3, batch_size: 4, max_length: 128,
   average: {method: greedy}}
evaluation:
  num_samples: 1
  sources: [{type: hook, recipe: math, num: 30, options: {levels: [1]}}]
pipeline:
  clean: {rules: [drop_control_tokens, drop_empty]}
  dedup: {threshold: 1.0, max_loss: 1.0}
resources: {min_free_gib: 0}
"""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def one_line(self) -> str:
        """The only line on the standard error."""
        assert self.err.count("\n") == 1, self.err
        return self.err.strip().removeprefix("posttrain: ")


def posttrain(*arguments: str) -> Ended:
    """Run a command; what it does not catch fails the test."""
    out, err, argv, code = StringIO(), StringIO(), sys.argv, 0
    handler = signal.getsignal(signal.SIGTERM)
    sys.argv = ["posttrain", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
    return Ended(code, out.getvalue(), err.getvalue())


def at(folder: Path, command: str, *arguments: str) -> Ended:
    """Run a command on the small plan of a workspace."""
    return posttrain(command, *arguments, "--plan", "small", "--workspace", str(folder))


def pair(number: int, **fields: Any) -> dict[str, Any]:
    sides = {"chosen": f"{number}", "rejected": f"sure! it may be {number + 1}"}
    made = {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
    prompt = [{"role": "user", "content": f"{number}+0=?"}]
    row = {"id": f"p{number}", "prompt": prompt, "strength": "better", "capability": "math"}
    return {**row, **made, **fields}


def write_lines(path: Path, rows: list[dict[str, Any] | bytes]) -> None:
    made = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(made))


def new_workspace(folder: Path) -> Path:
    assert posttrain("init", str(folder)).code == 0
    (folder / "rounds" / "small.yaml").write_text(PLAN)
    human = (folder / "rounds/tiny/data/human.jsonl").read_text().splitlines()[:24]
    (folder / "data" / "human.jsonl").write_text("\n".join(human) + "\n")
    write_lines(folder / "data" / "pairs.jsonl", [pair(number) for number in range(20)])
    return folder


def published(folder: Path, name: str = "") -> Path:
    return folder / "runs" / "small" / name


def manifest(folder: Path, step: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((published(folder, step) / "manifest.json").read_text())
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every published manifest of a run."""
    paths = sorted(published(folder).glob("round-*/*/manifest.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def cut(path: Path) -> None:
    """Take the end off a file."""
    path.write_bytes(path.read_bytes()[:-100])
