"""Norm and adapter in one step give what both give one by one, values and gradients, and keep less."""

from __future__ import annotations

from itertools import product

import open_clip.transformer
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

from mma import BottleneckConfig, MMAConfig, Site
from mma.fused import norm_of
from mma.plan import plan
from mma.routing import Routes, RouteState
from mma.sites import Wrapped, make_module
from models.decoder import RMSNorm

C, N = 24, 37
MODALITY = (torch.arange(N) * 7 % 3 == 0).long()
MODALITY[:2] = torch.tensor([0, 1])
FRONT = torch.tensor([0, 1])
NORMS = {
    "rms": lambda: RMSNorm(C, 1e-5),
    "layer": lambda: nn.LayerNorm(C),
    "no shift": lambda: nn.LayerNorm(C, bias=False),
    "open_clip": lambda: open_clip.transformer.LayerNorm(C),
}
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def made(norm: nn.Module, part: str, config: MMAConfig | BottleneckConfig) -> Wrapped:
    """A site with an active adapter of random values behind a frozen norm of random values."""
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter.requires_grad_(False), 1.0)
    state = RouteState()
    site = Wrapped(norm, state)
    module = make_module(Site("n", C, part, "attn", 1), config, state)
    assert module is not None
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    site.adapters["a"], site.active = module, "a"
    return site


def one_by_one(site: Wrapped, x: Tensor, routes: Routes | None) -> Tensor:
    """The plain path."""
    rows = x if routes is None else routes.by_rows(x)
    return site.adapters["a"](rows, site.base(rows), routes).reshape(x.shape)


def in_one_step(site: Wrapped, x: Tensor, routes: Routes | None) -> Tensor:
    """The site itself, which must not ask its norm."""
    asked: list[Tensor] = []
    forward = type(site.base).forward
    site.base.forward = lambda x: (asked.append(x), forward(site.base, x))[1]
    if routes is None:
        got = site(x)
    else:
        with site._state.use(routes):
            got = site(x)
    del site.base.forward
    assert not asked
    return got


def outcome(run, site: Wrapped, x: Tensor, routes: Routes | None) -> tuple[Tensor, list[Tensor]]:
    """Values and the gradients of the input and of all trained tensors, under one seed."""
    torch.manual_seed(1)
    x = x.detach().requires_grad_()
    y = run(site, x, routes)
    trained = list(site.adapters.parameters())
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    found = torch.autograd.grad(y, [x, *trained], weight, allow_unused=True)
    return y.detach(), [torch.zeros(()) if g is None else g for g in found]


def assert_same(site: Wrapped, x: Tensor, routes: Routes | None = None) -> None:
    """Both ways agree, each tensor by its own size."""
    (y, grads), (want, wanted) = (outcome(run, site, x, routes) for run in (in_one_step, one_by_one))
    assert y.dtype == want.dtype
    for one, other in zip((y, *grads), (want, *wanted), strict=True):
        size = other.abs().max().item()
        torch.testing.assert_close(one, other, atol=BOUNDS[x.dtype] * max(size, 1.0), rtol=0.0)


def stream(dtype: torch.dtype = torch.float32) -> Tensor:
    return (1.5 * torch.randn(N, C, generator=torch.Generator().manual_seed(3)) + 0.5).to(dtype)


CONFIGS = {
    "defaults": {},
    "one route": {"routes": 1},
    "three routes, groups": {"routes": 3, "groups": 2, "scale": 0.5, "dropout": 0.0},
    "wide": {"r": 12, "groups": 3, "routes": 2, "scale": -2.0, "temperature": 2.0},
}


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_decoder_site(name, norm, dtype):
    config = MMAConfig(**CONFIGS[name])
    site = made(NORMS[norm]().to(dtype), "decoder", config)
    adapter = site.adapters["a"]
    for training in (True, False):
        site.train(training)
        assert_same(site, stream(dtype), Routes(MODALITY, FRONT))
        assert adapter.seen.shape == (2, config.routes)
        adapter.table = torch.softmax(torch.randn(2, config.routes), -1)
        assert_same(site, stream(dtype), Routes(MODALITY))


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "rule"), list(product(CONFIGS, ("token", "modality"))))
def test_a_tower_site(name, rule, norm, dtype):
    site = made(NORMS[norm]().to(dtype), "tower", MMAConfig(tower=rule, **CONFIGS[name]))
    assert_same(site, stream(dtype)[:36].view(4, 9, C))
    assert_same(site.eval(), stream(dtype)[0])


def test_a_bottleneck_without_activation():
    for activation in ("none", "relu"):
        config = BottleneckConfig(r=4, activation=activation, dropout=0.5)
        site = made(NORMS["layer"](), "decoder", config)
        x, routes = stream(), Routes(MODALITY)
        if activation == "none":
            assert_same(site, x, routes)
        (y, _), (want, _) = (outcome(run, site, x, routes) for run in (run_site, one_by_one))
        torch.testing.assert_close(y, want)


def run_site(site: Wrapped, x: Tensor, routes: Routes) -> Tensor:
    with site._state.use(routes):
        return site(x)


def test_rows_of_tokens_and_flattened_rows():
    site = made(NORMS["rms"](), "decoder", MMAConfig(dropout=0.0))
    site.adapters["a"].table = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    rows = stream()[:36].view(4, 9, C)
    for x in (rows, rows.flatten(0, 1)):
        assert_same(site, x, Routes(torch.tensor([[0], [1], [1], [0]])))


def test_weights_that_a_router_pass_holds():
    """The gradient goes back through the pass before the samples."""

    def run(step, site, tokens):
        step(site, tokens[:, None], Routes(FRONT[:, None], FRONT))
        return step(site, stream(), Routes(MODALITY, held=True))

    site = made(NORMS["rms"](), "decoder", MMAConfig(dropout=0.0))
    router = site.adapters["a"].router.weight
    found = []
    for step in (in_one_step, one_by_one):
        tokens = torch.ones(2, C, requires_grad=True)
        with torch.random.fork_rng():
            y = run(step, site, tokens * torch.arange(C))
        found.append(torch.autograd.grad(y.square().sum(), [tokens, router]))
    for one, other in zip(*found, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def test_a_gradient_of_route_weights_is_counted():
    site = made(NORMS["rms"](), "decoder", MMAConfig())
    with site._state.use(Routes(MODALITY, FRONT)):
        y = site(stream().requires_grad_())
    assert site._state.gradients == 0
    y.sum().backward()
    assert site._state.gradients == 1


@pytest.mark.parametrize(("part", "norm"), list(product(("decoder", "tower"), ("rms", "layer"))))
def test_nothing_wide_is_kept_but_the_input(part, norm):
    site = made(NORMS[norm](), part, MMAConfig(r=4))
    x, kept = stream().requires_grad_(), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        site._state.use(Routes(MODALITY, FRONT)),
    ):
        site(x)
    wide = [t for t in kept if t.numel() >= N * C and t.dtype.is_floating_point]
    assert wide
    assert all(t.data_ptr() == x.data_ptr() for t in wide)
    beside = sum(t.numel() for t in kept if len(t) == N or t.shape[-1] == N) - sum(t.numel() for t in wide)
    assert beside <= N * (2 + 4 + 4 + 2 + 1)  # statistics, z, what is dropped, weights, modality


def test_a_fresh_adapter_leaves_the_norm_as_it_is():
    for dtype, norm in product(BOUNDS, ("rms", "layer")):
        site = made(NORMS[norm]().to(dtype), "decoder", MMAConfig())
        for parameter in (site.adapters["a"].up, site.adapters["a"].up_bias):
            nn.init.zeros_(parameter)
        got = in_one_step(site, stream(dtype), Routes(MODALITY, FRONT))
        assert torch.equal(got, site.base(stream(dtype)))


def test_nothing_to_compute():
    site = made(NORMS["rms"](), "decoder", MMAConfig())
    assert in_one_step(site, stream()[:2], Routes(FRONT, FRONT)).shape == (2, C)
    assert in_one_step(made(NORMS["layer"](), "tower", MMAConfig()), stream()[:0], None).shape == (0, C)


def test_an_input_without_gradient():
    """The first norm of a tower: only the adapter learns."""
    site = made(NORMS["layer"](), "tower", MMAConfig(dropout=0.0))
    trained = list(site.adapters.parameters())
    got = torch.autograd.grad(in_one_step(site, stream(), None).square().sum(), trained)
    want = torch.autograd.grad(one_by_one(site, stream(), None).square().sum(), trained)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


class Doubled(nn.LayerNorm):
    """Not the usual layer norm."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(norm: nn.Module) -> nn.Module:
    norm.register_forward_hook(lambda module, args, y: 2 * y)
    return norm


@pytest.mark.parametrize(
    "norm",
    [
        Doubled(C).requires_grad_(False),
        nn.LayerNorm(C),
        nn.LayerNorm(C, elementwise_affine=False),
        nn.LayerNorm((1, C)).requires_grad_(False),
        nn.LayerNorm(C).requires_grad_(False).bfloat16(),
        nn.RMSNorm(C).requires_grad_(False),
        nn.Linear(C, C).requires_grad_(False),
        hooked(nn.LayerNorm(C).requires_grad_(False)),
    ],
)
def test_other_norms_go_the_plain_path(norm):
    assert norm_of(norm, stream()) is None
    assert norm_of(nn.LayerNorm(C).requires_grad_(False), stream()) is not None
    assert norm_of(nn.LayerNorm(C).double().requires_grad_(False), stream().double()) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm_of(nn.LayerNorm(C).requires_grad_(False), stream()) is None


def test_a_norm_that_is_tuned_gets_its_gradient():
    site = made(NORMS["rms"](), "tower", MMAConfig(dropout=0.0))
    site.base.weight.requires_grad_(True)
    site(stream()).square().sum().backward()
    assert site.base.weight.grad.abs().max() > 0


def test_a_plan_of_a_bank_goes_the_plain_path():
    site = made(NORMS["rms"](), "decoder", MMAConfig(dropout=0.0))
    site.adapters["a"].table = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    by_plan = plan(["live", None], [0, 1], [20, N - 20], torch.device("cpu"))
    modality = torch.tensor([0] * 20 + [1] * (N - 20))
    got = run_site(site, stream(), Routes(modality, plan=by_plan))
    want = one_by_one(site, stream(), Routes(modality))
    torch.testing.assert_close(got, torch.cat([want[:20], site.base(stream()[20:])]))


@pytest.mark.parametrize(("part", "norm"), [("decoder", "rms"), ("tower", "layer")])
def test_compiled_without_a_break_or_another_compilation(part, norm):
    torch._dynamo.reset()
    site = made(NORMS[norm](), part, MMAConfig(dropout=0.0))
    if part == "decoder":
        site.adapters["a"].table = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    linear = nn.Linear(C, C).requires_grad_(False)

    def block(x: Tensor, modality: Tensor) -> Tensor:
        with site._state.use(Routes(modality)):
            return x + functional.silu(linear(site(x)))

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=counter, fullgraph=True, dynamic=True)
    trained = [site.adapters["a"].down.weight, site.adapters["a"].up]
    compiled_so_far = 0
    for count in (37, 20):
        x, modality = stream()[:count].clone().requires_grad_(), MODALITY[:count].clone()
        found = []
        for run in (compiled, block):
            y = run(x, modality)
            found.append((y, *torch.autograd.grad(y.square().sum(), [x, *trained])))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
        compiled_so_far = compiled_so_far or counter.frame_count
    assert counter.frame_count == compiled_so_far


def test_compiled_with_modality_tokens():
    """A compiled site cannot count gradients: the hook of the stream in front of it does."""
    torch._dynamo.reset()
    site = made(NORMS["rms"](), "decoder", MMAConfig(dropout=0.0))
    state, router = site._state, site.adapters["a"].router.weight
    compiled, found = torch.compile(site, backend="aot_eager", fullgraph=True), []
    for run in (compiled, site):
        x = stream().requires_grad_()
        with state.use(Routes(MODALITY, FRONT)):
            y = run(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, router])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
    x = stream().requires_grad_()
    state.watch(x)
    with state.use(Routes(MODALITY, FRONT)):
        y = compiled(x)
    before = state.gradients
    assert before == state.gradients
    y.sum().backward()
    assert state.gradients == before + 1
