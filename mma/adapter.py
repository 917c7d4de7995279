"""The modules that sit behind a norm: mixture-of-modality adapters by their rule, and the plain bottleneck.

    z = dropout(A x + a)        w = softmax((R m + c) / t)        y = x + s * sum_k w_k (B_k z + b_k)

(arXiv 2305.15023, equations 3 to 5.) B and b start at zero, so a fresh adapter changes nothing. Every kind is
called as `adapter(x, y, routes)` with the input and the output of the module it is attached to, and tells by
`fold(modality)` what it adds as a low-rank map, or why it cannot be told so. Knows nothing of where it is
attached.

Shapes: ... any leading axes (tokens), C channels, r bottleneck, K routes, G groups, M modalities.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mma.config import BottleneckConfig, MMAConfig, SiteConfig
from mma.errors import AdapterError
from mma.fused import Norm, Routed, Weights, fronted, mixed, normed
from mma.lowrank import LowRank
from mma.routing import Routes, RouteState, spread


class SiteAdapter(nn.Module):
    """What every module at a site can do."""

    def forward(self, x: Tensor, y: Tensor, routes: Routes | None) -> Tensor:
        """Input x and output y of the wrapped module -> the adapted output."""
        raise NotImplementedError

    def behind(self, norm: Norm, x: Tensor, routes: Routes | None) -> Tensor | None:
        """Norm and module in one step, float[..., C] -> float[..., C]; None where there is no such step."""
        return None

    def fold(self, modality: int) -> LowRank:
        """What it adds for a modality as a low-rank map; raises AdapterError with the reason if none."""
        raise NotImplementedError


class Mixture(SiteAdapter):
    """The down-projection and the weighted up-projections; the weights come from outside."""

    def __init__(self, channels: int, config: SiteConfig, routes: int, groups: int, scale: float) -> None:
        super().__init__()
        if channels % groups:
            raise AdapterError(
                f"adapter: {channels} channels do not divide into {groups} groups; set groups to a divisor"
            )
        self.groups, self.scale = groups, scale
        self.down = nn.Linear(channels, config.r)
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Parameter(torch.zeros(routes, channels, config.r // groups))
        # One-dimensional like every bias, so that weight decay leaves it alone.
        self.up_bias = nn.Parameter(torch.zeros(routes * channels))
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def update(self, x: Tensor, weights: Tensor) -> Tensor:
        """x float[..., C], route weights float[..., K] -> sum_k w_k (B_k z + b_k), float[..., C]."""
        z = self.dropout(_linear(self.down, x))
        # Weighting the bottleneck instead of the outputs keeps the K outputs from ever being formed.
        weighted = (weights[..., :, None] * z[..., None, :]).flatten(-2)
        up = self.dense_up().to(x.dtype).transpose(1, 2).flatten(0, 1)
        out: Tensor = weighted @ up + weights @ self.route_biases().to(x.dtype)
        return out

    def route_biases(self) -> Tensor:
        """The biases of the routes, float[K, C]."""
        return self.up_bias.view(len(self.up), -1)

    def dense_up(self) -> Tensor:
        """The up-projections as full matrices float[K, C, r]: zero outside their groups."""
        if self.groups == 1:
            return self.up
        routes, channels, width = self.up.shape
        # Multiplied with the same tensor of zeros and ones instead of being put into place piece by piece.
        own = torch.eye(self.groups, dtype=self.up.dtype, device=self.up.device)
        blocks = self.up.view(routes, self.groups, -1, 1, width) * own[:, None, :, None]
        return blocks.reshape(routes, channels, self.groups * width)

    def kept(self, x: Tensor) -> Tensor | None:
        """What the dropout does to the bottleneck of float[..., C], as factors float[N, r]; None: nothing."""
        if not self.training or self.dropout.p == 0:
            return None
        kept: Tensor = self.dropout(x.new_ones(x[..., 0].numel(), len(self.down.weight)))
        return kept

    def tensors(self, router: nn.Linear | None = None) -> Weights:
        """The weights for one step with the norm; with a router the tokens route themselves."""
        tensors = Weights(self.down.weight, self.down.bias, self.dense_up(), self.route_biases())
        return tensors if router is None else Weights(*tensors[:4], router.weight, router.bias)

    def folded(self, weights: Tensor) -> LowRank:
        """What is added with fixed route weights float[K]."""
        wide = weights.to(self.up.dtype)
        up = torch.einsum("k,kcr->cr", wide, self.dense_up())
        bias = wide @ self.route_biases()
        assert self.down.bias is not None, "every linear map of an adapter has a bias"
        return LowRank(self.down.weight, self.down.bias, self.scale * up, self.scale * bias)


class ModalityRouted(Mixture):
    """A mixture whose router reads one hidden state per modality: that of the modality's token (decoder)."""

    def __init__(self, channels: int, config: MMAConfig, state: RouteState) -> None:
        super().__init__(channels, config, config.routes, config.groups, config.scale)
        self.temperature = config.temperature
        self.router = nn.Linear(channels, config.routes)
        self.table: Tensor | None = None  # float[M, K], once it is evaluated
        self.seen: Tensor | None = None  # float[M, K] of the last forward with modality tokens, in its graph
        self._state = state

    def weights(self, m: Tensor) -> Tensor:
        """Router input float[..., C] -> route weights float[..., K], in fp32."""
        return torch.softmax(_linear(self.router, m).float() / self.temperature, dim=-1)

    def forward(self, x: Tensor, y: Tensor, routes: Routes | None) -> Tensor:
        """float[..., C] -> float[..., C], each token with the weights of its modality."""
        routes = _known(routes)
        rows = routes.modality_rows
        front = None if rows is None else y.reshape(-1, y.shape[-1]).index_select(0, rows)
        weights = spread(self._weights_of(front, routes), routes.token_modality)
        return y + self.scale * self.update(y, weights.to(y.dtype))

    def behind(self, norm: Norm, x: Tensor, routes: Routes | None) -> Tensor:
        """See SiteAdapter."""
        routes, front = _known(routes), None
        if routes.modality_rows is not None:
            flat, front = fronted(x.reshape(-1, x.shape[-1]), routes.modality_rows)
            x, front = flat.view(x.shape), normed(front, norm)[0]
        of_token = routes.token_modality.expand(x.shape[:-1]).reshape(-1)
        routed = Routed(self._weights_of(front, routes), of_token)
        return mixed(x, norm, self.tensors(), routed, self.kept(x), self.scale)

    def fold(self, modality: int) -> LowRank:
        """See SiteAdapter; the weights come from the routing table."""
        assert self.table is not None, "the table is evaluated before anything is folded"
        return self.folded(self.table[modality])

    def _weights_of(self, front: Tensor | None, routes: Routes) -> Tensor:
        """Route weights float[M, K]: of the modality tokens' normed rows float[M, C] where these stand."""
        if front is None:
            weights = self.seen if routes.held else self.table
            assert weights is not None, "the router pass or the table comes before the samples"
            return weights
        weights = self.weights(front.float())
        if (
            weights.requires_grad and not torch.compiler.is_compiling()
        ):  # there the stream in front is watched
            weights.register_hook(self._state.count_gradient)  # type: ignore[no-untyped-call]
        # Behind a pass of modality tokens alone the graph is needed; elsewhere it would only take memory.
        alone = len(routes.token_modality) == len(front)
        self.seen = weights if alone else weights.detach()
        return weights


class TokenRouted(Mixture):
    """A mixture that routes every token by itself (tower)."""

    def __init__(self, channels: int, config: MMAConfig) -> None:
        super().__init__(channels, config, config.routes, config.groups, config.scale)
        self.temperature = config.temperature
        self.router = nn.Linear(channels, config.routes)

    def forward(self, x: Tensor, y: Tensor, routes: Routes | None) -> Tensor:
        """float[..., C] -> float[..., C]; a token's company makes no difference."""
        weights = torch.softmax(_linear(self.router, y).float() / self.temperature, dim=-1)
        return y + self.scale * self.update(y, weights.to(y.dtype))

    def behind(self, norm: Norm, x: Tensor, routes: Routes | None) -> Tensor:
        """See SiteAdapter."""
        tensors = self.tensors(self.router)
        return mixed(x, norm, tensors, Routed(), self.kept(x), self.scale, self.temperature)

    def fold(self, modality: int) -> LowRank:
        """Refused: the weights differ from token to token."""
        raise AdapterError(
            "adapter: tower rule 'token' routes every picture token by itself, so no fixed weights can be "
            "merged; leave the tower unmerged, or train with tower: modality"
        )


class VectorRouted(Mixture):
    """A mixture whose route weights are one learned vector, the same for every token (mergeable)."""

    def __init__(self, channels: int, config: MMAConfig) -> None:
        super().__init__(channels, config, config.routes, config.groups, config.scale)
        self.temperature = config.temperature
        self.route_logits = nn.Parameter(torch.zeros(config.routes))

    def weights(self) -> Tensor:
        """Route weights float[K], in fp32."""
        return torch.softmax(self.route_logits.float() / self.temperature, dim=-1)

    def forward(self, x: Tensor, y: Tensor, routes: Routes | None) -> Tensor:
        """float[..., C] -> float[..., C]."""
        return y + self.scale * self.update(y, self.weights().to(y.dtype).expand(*y.shape[:-1], -1))

    def behind(self, norm: Norm, x: Tensor, routes: Routes | None) -> Tensor:
        """See SiteAdapter; one vector for all tokens makes the routes one."""
        weights = self.weights().to(self.up.dtype)
        up = torch.einsum("k,kcr->cr", weights, self.dense_up())[None]
        bias = (weights @ self.route_biases())[None]
        tensors = Weights(self.down.weight, self.down.bias, up, bias)
        return mixed(x, norm, tensors, Routed(), self.kept(x), self.scale)

    def fold(self, modality: int) -> LowRank:
        """See SiteAdapter; the same for every modality."""
        return self.folded(self.weights())


class UnroutedReplacement(Mixture):
    """The public code's `normal` tower adapter: no router, no scale, and its output replaces its input.

    Only for reading files trained that way: it starts at zero, not at identity (docs/differences.md).
    """

    def __init__(self, channels: int, config: MMAConfig) -> None:
        super().__init__(channels, config, 1, config.groups, 1.0)

    def forward(self, x: Tensor, y: Tensor, routes: Routes | None) -> Tensor:
        """float[..., C] -> float[..., C]."""
        return self.update(y, y.new_ones(*y.shape[:-1], 1))

    def fold(self, modality: int) -> LowRank:
        """Refused: it adds nothing to its input but replaces it."""
        raise AdapterError(
            "adapter: tower rule 'legacy_no_residual' replaces its input, so it is no low-rank addition to "
            "merge; leave the tower unmerged"
        )


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


class Bottleneck(Mixture):
    """The plain adapter y = x + s (B f(A x + a) + b) (arXiv 1902.00751), one path and no router."""

    def __init__(self, channels: int, config: BottleneckConfig) -> None:
        super().__init__(channels, config, 1, 1, config.scale)
        self.activation = config.activation

    def forward(self, x: Tensor, y: Tensor, routes: Routes | None) -> Tensor:
        """float[..., C] -> float[..., C]."""
        z = self.dropout(ACTIVATIONS[self.activation](_linear(self.down, y)))
        return y + self.scale * functional.linear(z, self.up[0].to(y.dtype), self.up_bias.to(y.dtype))

    def behind(self, norm: Norm, x: Tensor, routes: Routes | None) -> Tensor | None:
        """See SiteAdapter; not with an activation."""
        if self.activation != "none":
            return None
        return mixed(x, norm, self.tensors(), Routed(), self.kept(x), self.scale)

    def fold(self, modality: int) -> LowRank:
        """See SiteAdapter; refused where an activation stands between down and up."""
        if self.activation != "none":
            raise AdapterError(
                f"adapter: a bottleneck with activation {self.activation!r} is not linear, so it cannot be "
                "merged; train with activation: none"
            )
        return self.folded(self.up.new_ones(1))


def _known(routes: Routes | None) -> Routes:
    """The routing that a site routed by modality cannot do without."""
    if routes is None:
        raise RuntimeError("a site routed by modality was run without saying what its tokens carry")
    return routes


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in the type of its input: trained tensors are fp32, the stream may be bf16."""
    assert layer.bias is not None, "every linear map of an adapter has a bias"
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
