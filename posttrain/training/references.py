"""The reference's log-probabilities of a DPO, computed once and found again.

A file a reference, keyed by its weights, by token ids and masks, and by what decides how sums are
rounded; so variants on the same pairs, and a training that goes on, share it.

    known = References.of(policy, kept, job, batch_size=8)
"""

import hashlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.models.files import weight_files
from posttrain.rows import canonical_json
from posttrain.steps.fingerprint import file_hash
from posttrain.tables import read_json, write_json
from posttrain.training.job import Job
from posttrain.training.ranks import any_rank, is_main, num_ranks
from posttrain.training.tokens import TokenRow, digest_of

LogProbs = list[tuple[float, float]]
"""Of the chosen and of the rejected response of each pair, in nats."""


@dataclass(frozen=True)
class References:
    """Where a reference's log-probabilities stand, or will stand."""

    file: Path

    @classmethod
    def of(cls, policy: Path, kept: Sequence[TokenRow], job: Job, batch_size: int) -> "References":
        """The file of these pairs under the model in the folder `policy`."""
        parts = {
            "weights": [file_hash(path) for path in weight_files(policy)],
            "rows": digest_of(kept),
            "precision": job.precision,
            "device": job.resources.device,
            "batch_size": batch_size,
            "processes": num_ranks(),
        }
        key = hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:32]
        folder = job.work if job.shared is None else job.shared
        return cls(folder / "references" / f"{key}.json")

    def load(self) -> LogProbs | None:
        """What was saved; every process of a training gets the same answer."""
        if not any_rank(self.file.is_file()):
            return None
        return [(float(chosen), float(rejected)) for chosen, rejected in read_json(self.file)["of"]]

    def save(self, values: LogProbs) -> None:
        """Keep them; the file appears whole, also where another variant writes the same."""
        if is_main():
            own = self.file.with_name(f"{self.file.stem}-{socket.gethostname()}-{os.getpid()}.json")
            write_json(own, {"of": values})
            own.replace(self.file)
