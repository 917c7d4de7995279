"""The Triton kernels give what their twin gives: through the interpreter here, and on a card where one is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402, behind the line above
from triton.compiler import ASTSource  # noqa: E402

from mma import fused, fused_triton  # noqa: E402
from tests.mma.fused_cases import CASES  # noqa: E402

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    """Distances of all cases, from a process of its own: Triton must be told before it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path.cwd())}
    script = Path(__file__).with_name("fused_cases.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_through_the_interpreter(name, interpreted):
    bound = BOUNDS[CASES[name].dtype]
    assert {what: far for what, far in interpreted[name].items() if not far <= bound} == {}
    assert {"y", "x", "up"} <= interpreted[name].keys()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_on_a_card(name):
    bound = BOUNDS[CASES[name].dtype]
    assert {what: far for what, far in CASES[name].distance("cuda").items() if not far <= bound} == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
def test_a_card_takes_the_kernels():
    x, up = torch.randn(3, 4096, device="cuda"), torch.randn(2, 4096, 8, device="cuda")
    assert fused._kernels(x, up) is fused_triton
    assert fused._kernels(x, up[..., :1].expand(-1, -1, 64)) is fused
    assert fused._kernels(x.cpu(), up) is fused


def compiled_for_a_card(kernel, kind: str, consts: dict[str, object], arch: int, options):
    """The kernel's machine code, which no card is needed for."""
    types = {"n": "i32", "stride": "i32", "eps": "fp32", "scale": "fp32", "temperature": "fp32"}
    types |= {"mean_ptr": "*fp32", "rstd_ptr": "*fp32"} | dict.fromkeys(consts, "constexpr")
    signature = {name: types.get(name, f"*{kind}") for name in kernel.arg_names}
    fixed = {(kernel.arg_names.index(name),): value for name, value in consts.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


@pytest.mark.parametrize(
    ("arch", "kind", "routed", "r", "routes"),
    [(80, "bf16", False, 8, 2), (90, "fp32", True, 15, 4)],
)
@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
def test_compiled_for_a_card(kernel, arch, kind, routed, r, routes, tmp_path, monkeypatch):
    """Also the largest tiles leave room on the cards with the least shared memory, 99 KB."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(fused_triton, kernel)
    x = torch.empty(1, 4096, dtype=torch.bfloat16 if kind == "bf16" else torch.float32, device="meta")
    narrow, wide = x.new_empty(r + routes * routed, 4096), x.new_empty(routes * (r + 1), 4096)
    cast = fused.Cast(x[0], None, narrow, narrow[:, 0], wide)
    sizes = fused_triton._sizes(x, cast, fused.Rule(True, 1e-5, 1.0, 1.0, r), x, x)
    options = {"num_warps": sizes.pop("num_warps")}
    absent = ("mean_ptr", "shift_ptr", *(("of_w_ptr",) if routed else ()))
    consts = sizes | {name: None for name in absent if name in function.arg_names}
    made = compiled_for_a_card(function, kind, consts, arch, options)
    assert made.metadata.shared <= 99 * 1024
    assert ("mma.sync" in made.asm["ptx"]) == (kind == "bf16")  # on tensor cores
