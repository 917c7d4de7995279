"""The projector: from the tower's features to embeddings the decoder can read.

Shapes: P pictures, K class tokens, V tower width, D decoder width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ClassTokenProjector(nn.Module):
    """V -> hidden -> SiLU -> D on every class token (LaVIN, arXiv 2305.15023, section 3.2)."""

    def __init__(self, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, dim)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """float[P, K, V] -> float[P, K, D]."""
        return self.up(functional.silu(self.down(features)))
