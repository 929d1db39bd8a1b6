"""A finished round that is damaged, stale, held by others or collected; nothing is silent."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_round import at, cut, manifest, published, snapshot


def test_a_flipped_bit_is_found_by_verify(run: Path) -> None:
    assert at(run, "status", "--verify").code == 0
    path = published(run, "round-1/dpo/model/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    ended = at(run, "status", "--verify")
    assert ended.code == 1
    assert ended.one_line() == "round-1/dpo/model/model.safetensors: its content changed"
    out = at(run, "export", "--out", str(run / "model"))
    assert out.code == 1
    assert "model/model.safetensors" in out.one_line()
    assert not (run / "model").exists()


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_truncated_or_missing_file_is_noticed_by_every_command(
    run: Path, damage: Callable[[Path], None]
) -> None:
    damage(published(run, "round-1/sample/responses.jsonl"))
    before = snapshot(run)
    commands = [
        ("plan", "1"),
        ("status",),
        ("status", "--verify"),
        ("round", "1"),
        ("round", "2"),
        ("run",),
        ("gc",),
        ("export", "--out", str(run / "model")),
    ]
    for command in commands:
        ended = at(run, *command)
        assert ended.code == 1, (command, ended)
        assert "sample/responses.jsonl: " in ended.one_line()
    assert snapshot(run) == before


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_why_notices_a_damaged_table(run: Path, damage: Callable[[Path], None]) -> None:
    damage(published(run, "round-1/sample/responses.jsonl"))
    ended = at(run, "why", "nonsense")
    assert ended.code == 1
    assert "sample/responses.jsonl: " in ended.one_line()


def test_a_manifest_that_cannot_be_read_is_damage(run: Path) -> None:
    cut(published(run, "round-1/rm/manifest.json"))
    ended = at(run, "plan", "1")
    assert ended.code == 1
    assert "round-1/rm: published without a readable manifest" in ended.one_line()


def test_drift_is_shown_refused_and_set_aside_when_asked(run: Path) -> None:
    new = ("--set", "dpo.beta=0.2")
    planned = {line.split()[0]: line for line in at(run, "plan", "1", *new).out.splitlines()}
    assert planned["round-1/dpo-a"].split(maxsplit=2)[1:] == ["stale", "dpo.beta 0.1 → 0.2"]
    assert planned["round-1/sft"].split()[1:] == ["done"]
    assert planned["round-1/gate"].split()[1] == "stale"
    before = snapshot(run)
    refused = at(run, "round", "1", *new)
    assert refused.code == 2
    assert "round-1/dpo-a was made with other settings: dpo.beta 0.1 → 0.2" in refused.one_line()
    assert snapshot(run) == before
    redone = at(run, "round", "1", *new, "--redo-stale", "--from", "dpo-a", "--until", "dpo-a")
    assert redone.code == 0, redone.err
    old = before["runs/small/round-1/dpo-a/manifest.json"]
    assert manifest(run, "round-1/dpo-a")["payload"]["settings"]["dpo"]["beta"] == 0.2
    aside = list(published(run, ".replaced/round-1").glob("dpo-a-*/manifest.json"))
    assert [path.read_bytes() for path in aside] == [old]


def test_a_full_disk_fails_the_step_and_room_lets_it_go_on(run: Path) -> None:
    """A limit on the size of files stands for the disk: weights do not fit, books do."""
    only = ("--set", "dpo.beta=0.2", "--redo-stale", "--from", "dpo-a", "--until", "dpo-a")
    before = snapshot(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        full = at(run, "round", "1", *only)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.code == 1
    assert "round-1/dpo-a: " in full.err
    assert "File too large" in full.err
    assert not published(run, "round-1/dpo-a").exists()
    assert before.items() - snapshot(run).items() == {
        ("runs/small/round-1/dpo-a/manifest.json", before["runs/small/round-1/dpo-a/manifest.json"])
    }
    assert at(run, "round", "1", *only).code == 0
    assert not published(run, "round-1/dpo-a.partial").exists()
    assert "round-1/dpo-a            done" in at(run, "plan", "1", "--set", "dpo.beta=0.2").out


def test_circumstances_make_nothing_stale(run: Path) -> None:
    other = ("resources.threads=2", "sampling.shard_size=3", "title=another", "keep.policy=2")
    ended = at(run, "plan", "1", *(part for one in other for part in ("--set", one)))
    assert {line.split()[1] for line in ended.out.splitlines()} == {"done"}


HOLDER = """
import sys
from pathlib import Path
from posttrain.steps.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_works_on_the_run(run: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(published(run))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for command in (("round", "1"), ("run",), ("gc",)):
            ended = at(run, *command)
            assert ended.code == 1
            assert "another process works on this run (host " in ended.one_line()
            assert f"process {holder.pid}," in ended.one_line()
        # Reading is no work.
        assert at(run, "plan", "1").code == 0
    assert at(run, "round", "1").code == 0


def test_gc_removes_what_keep_lets_go_and_the_run_goes_on(run: Path) -> None:
    def weights() -> set[str]:
        found = published(run).rglob("*.safetensors")
        return {str(path.relative_to(published(run))) for path in found}

    before, manifests = weights(), snapshot(run)
    assert at(run, "gc", "--set", "keep.members=true").code == 0
    kept_members = weights()
    assert {name for name in before if "-a/" in name or "-b/" in name} <= kept_members
    dry = at(run, "gc", "--dry-run")
    assert weights() == kept_members
    ended = at(run, "gc")
    gone = before - weights()
    assert gone == {
        f"round-1/{name}/model/model.safetensors"
        for name in ("rm-a", "rm-b", "sft-a", "sft-b", "dpo-a", "dpo-b")
    } | (before - kept_members)
    assert dry.out.replace("would remove", "removed") == ended.out
    assert snapshot(run) == manifests
    assert at(run, "gc").out == "0 files, 0.0 MiB\n"
    assert at(run, "status", "--verify").code == 0
    assert {line.split()[1] for line in at(run, "plan", "1").out.splitlines()} == {"done"}
    assert at(run, "round", "1").code == 0
    assert at(run, "round", "2").code == 3
    assert at(run, "export", "--out", str(run / "model")).code == 0
    again = at(run, "export", "--out", str(run / "model"))
    assert again.code == 2
    assert "already there; name a new folder" in again.one_line()
    weighted = ("--set", "sft.average={method: weighted, weights: {a: 2, b: 1}}")
    redo = at(run, "round", "1", "--from", "sft", "--redo-stale", *weighted)
    assert redo.code == 1
    assert "were removed by posttrain gc" in redo.one_line()
