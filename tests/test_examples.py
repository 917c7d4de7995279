"""The examples are short, and do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_hugging_face_example(tmp_path):
    script = ROOT / "examples/hugging_face.py"
    assert len(script.read_text().splitlines()) < 60
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "before: 8 of 32 right" in done.stdout
    assert "after 60 steps: 32 of 32 right" in done.stdout
    assert (tmp_path / "runs/colours/adapter_config.json").is_file()
