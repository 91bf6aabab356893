"""Attention heads of real models, by name."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads of one attention layer.

    Attributes:
        num_q: `H`, query heads.
        num_kv: `K`, KV heads.
        head_dim: `D`.
    """

    num_q: int
    num_kv: int
    head_dim: int

    @property
    def group(self) -> int:
        """`G`, query heads that share a KV head."""
        return self.num_q // self.num_kv


HEADS = {
    "smollm2_135m": Heads(9, 3, 64),
    "phi2": Heads(32, 32, 80),
    "phi3_mini": Heads(32, 32, 96),
    "llama3_8b": Heads(32, 8, 128),
    "qwen3_235b_a22b": Heads(64, 4, 128),
    "gemma_2b": Heads(8, 1, 256),
}
