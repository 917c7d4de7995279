"""Where the adapter of a run lies: in its folder, or in that of its last stage. Knows nothing of training."""

from __future__ import annotations

from pathlib import Path

from mma.errors import AdapterError
from mma.folder import CONFIG

ADAPTER = "adapter"  # the final adapter in the folder of a run, or of a stage
STAGES = "stages.txt"  # the names of a run's stages in their order, in the folder that holds them


def adapter_of(path: Path) -> Path:
    """The final adapter of a run, with several stages that of the last; any other path is given back.

    Raises AdapterError for a run whose last stage is not finished.
    """
    if (path / CONFIG).is_file():
        return path
    names = (path / STAGES).read_text().split() if (path / STAGES).is_file() else []
    last = path.joinpath(*names[-1:], ADAPTER)
    if (last / CONFIG).is_file():
        return last
    for name in names:
        if not (path / name / ADAPTER / CONFIG).is_file():
            raise AdapterError(
                f"adapter: stage {name} of the run {path} is not finished; finish it with "
                f"python train.py --resume {path}, or name the adapter folder of another stage"
            )
    return path
