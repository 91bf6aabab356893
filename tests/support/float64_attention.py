"""Attention of one query in float64 over the list of tokens that it sees."""

import numpy as np


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    scale: float,
    soft_cap: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Attend without masks.

    Args:
        q: [H, D], one query.
        k: [T, K, D], keys of the tokens it sees, T may be 0.
        v: [T, K, D], their values.
        scale: factor of the logits.
        soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`.

    Returns:
        out [H, D] and lse [H] float64; zeros and -inf if T is 0.
    """
    num_q_heads, head_dim = q.shape
    out, lse = np.zeros((num_q_heads, head_dim)), np.full(num_q_heads, -np.inf)
    if len(k) == 0:
        return out, lse
    for head in range(num_q_heads):
        shared = head * k.shape[1] // num_q_heads
        logits = scale * (k[:, shared].astype(np.float64) @ q[head].astype(np.float64))
        if soft_cap is not None:
            logits = soft_cap * np.tanh(logits / soft_cap)
        lse[head] = np.logaddexp.reduce(logits)
        out[head] = np.exp(logits - lse[head]) @ v[:, shared].astype(np.float64)
    return out, lse
