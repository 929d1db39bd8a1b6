"""What `posttrain dedup` can be told. Loads little; `posttrain.dedup_files` does the work.

DedupFileSettings(threshold=0.95, mode="exact")
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from posttrain.settings.base import Settings


class DedupFileSettings(Settings):
    """How a file of rows is deduplicated, outside of a round."""

    vectors: Path | None = None
    """A .npy file of unit vectors, one for each row of the file; None embeds the rows."""
    embedder: str = "minilm"
    """`minilm` (comes with the package), or the folder of a sentence-transformers model."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Keep a row only if its largest cosine to the rows before it is below this."""
    mode: Literal["auto", "exact", "ivf", "clustered"] = "auto"
    """`exact` compares all, `ivf` the nearest clusters, `clustered` as the paper does; `auto` is
    exact up to 100,000 rows and ivf past them."""
    rule: Literal["kept", "seen"] = "kept"
    """Compare with rows that were kept, or with every row before."""
    probes: Annotated[int, Field(ge=1)] = 8
    """Of ivf: clusters that a row is compared with."""
    passes: Annotated[int, Field(ge=1)] = 1
    """Of clustered: how often what is left is clustered afresh."""
    jaccard: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of runs of five words that two texts may not have in common; 0 leaves this step out."""
    max_loss: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the rows of a source, capability or topic that semantic duplicates may take; past
    it the command stops."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the clusters."""
    reject_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of malformed input rows past which nothing is done."""


class CurateFileSettings(Settings):
    """How a file of dialogs is curated, outside of a round."""

    pipeline: Path | None = None
    """A pipeline.yaml; None takes the workspace's, or the one that ships with us."""
    overrides: tuple[str, ...] = ()
    """Keys of the pipeline, as `key.path=value`."""
    heldout: tuple[Path, ...] = ()
    """Files of evaluation prompts that no row may hold."""
    mix: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}
    """Wanted share of each capability; without any, rows are neither repeated nor left out."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Breaks ties."""
    reject_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of malformed input rows past which nothing is done."""
