"""Tree attention from PyTorch: the Pallas kernels on torch tensors, without a copy.

    python examples/pytorch_decode.py

JAX works out who reads what of the tree, once per step; PyTorch owns queries, keys and
values, and launches the kernels on its default stream. Needs an NVIDIA GPU of compute
capability 9.0, PyTorch with CUDA and deft-jax[cuda13] in one environment.
"""

import functools
import os

# JAX would take most of the memory that PyTorch is to have.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from deft_jax.attention import (
    Logits,
    group_arrays,
    make_spec,
    num_multiprocessors,
    prepare,
)
from deft_jax.pallas_kernels.grouped_partial_attention.hopper import (
    grouped_partial_attention,
)
from deft_jax.pallas_kernels.kernel_spec import KernelSpec
from deft_jax.pallas_kernels.tree_reduction.hopper import tree_reduction

try:
    import torch
except ImportError:
    raise SystemExit(
        "PyTorch with CUDA is missing; install it beside deft-jax[cuda13]:"
        " pip install torch"
    ) from None

PROMPT_TOKENS = 1000
BRANCHES = 8
BRANCH_TOKENS = 50
HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 32, 8, 128, 64
MAX_ERROR = 1e-2


class TorchTreeAttention:
    """The kernels of tree attention for torch tensors of fixed shapes."""

    def __init__(self, spec: KernelSpec) -> None:
        """Remember the sizes; the first call compiles."""
        self._spec = spec
        self._attend = plgpu.as_torch_kernel(
            functools.partial(grouped_partial_attention, spec)
        )
        self._reduce = plgpu.as_torch_kernel(functools.partial(tree_reduction, spec))

    def __call__(self, q, k_pages, v_pages, prepared):
        """Attend in one layer.

        Args:
            q: [Q, H, D], queries in the order of the grouping.
            k_pages: [M, K, P, D].
            v_pages: [M, K, P, D].
            prepared: what `to_torch` returned for the step.

        Returns:
            out [Q, H, D], and lse [Q, H] float32.
        """
        spec, (masks, positions, live, schedule) = self._spec, prepared
        # In the shapes of the kernels, as nothing but a kernel may be in the functions.
        units = spec.units_per_page, spec.config.unit_tokens
        k_units, v_units = (x.unflatten(2, units) for x in (k_pages, v_pages))
        rows = q.view(len(q), spec.num_kv_heads, spec.group, spec.head_dim)
        work = schedule["unit"], schedule["tile"], schedule["worker"]
        out, lse, *partials = self._attend(
            rows, k_units, v_units, masks, positions, *work, schedule["flags"]
        )
        if not spec.fused:
            # Writes the tiles that were cut into pieces to the same tensors.
            pieces = schedule["pieces"]
            out, lse = self._reduce(*partials, pieces, live, out, lse)
        return out.view(q.shape), lse.view(q.shape[:2])


def to_torch(prepared):
    """Return what `prepare` returned, as torch tensors that share its memory."""
    masks, positions, live, schedule = jax.block_until_ready(prepared)
    names = ("unit", "tile", "worker", "pieces", "flags")
    lists = {name: torch.from_dlpack(getattr(schedule, name)) for name in names}
    return (*map(torch.from_dlpack, (masks, positions, live)), lists)


def page_table():
    """Return a prompt and branches, with pages of their own.

    Returns:
        pages of the prompt, then of each branch; and the arguments of `group_arrays`.
    """
    lengths = [PROMPT_TOKENS] + [BRANCH_TOKENS] * BRANCHES
    pages, used = [], 0
    for length in lengths:
        count = -(-length // PAGE_SIZE)
        pages.append(np.arange(used, used + count))
        used += count
    first, end, position = np.zeros((3, used, PAGE_SIZE), np.int32)
    for node, (own, length) in enumerate(zip(pages, lengths, strict=True)):
        index = np.arange(len(own) * PAGE_SIZE).reshape(len(own), PAGE_SIZE)
        is_prompt = node == 0
        first[own] = 0 if is_prompt else node - 1
        end[own] = np.where(index < length, BRANCHES if is_prompt else node, 0)
        position[own] = index + (0 if is_prompt else PROMPT_TOKENS)
    query_position = np.full(BRANCHES, PROMPT_TOKENS + BRANCH_TOKENS - 1, np.int32)
    return pages, (first, end, position, query_position, BRANCHES)


def branch_attention(q, k_pages, v_pages, pages, branch: int):
    """Return [H, D] float32, what PyTorch makes of one branch's query."""

    def path(pool):
        parts = (
            pool[torch.as_tensor(own, device=pool.device)].transpose(0, 1).flatten(1, 2)
            for own in (pages[0], pages[1 + branch])
        )
        prompt, own = parts
        tokens = [prompt[:, :PROMPT_TOKENS], own[:, :BRANCH_TOKENS]]
        heads = torch.cat(tokens, dim=1).float()
        return heads.repeat_interleave(HEADS // KV_HEADS, dim=0)

    return torch.nn.functional.scaled_dot_product_attention(
        q[branch, :, None].float(), path(k_pages), path(v_pages)
    )[:, 0]


def check_devices() -> None:
    """End with one line unless both libraries see a GPU that the kernels run on."""
    if not torch.cuda.is_available() or jax.default_backend() != "gpu":
        raise SystemExit(
            "this needs an NVIDIA GPU of compute capability 9.0 in both libraries; got"
            f" {jax.default_backend()} in JAX and"
            f" {torch.cuda.device_count()} GPUs in PyTorch; install deft-jax[cuda13]"
            " and PyTorch with CUDA"
        )
    if (capability := torch.cuda.get_device_capability()) != (9, 0):
        raise SystemExit(
            "this needs an NVIDIA GPU of compute capability 9.0, got"
            f" {capability[0]}.{capability[1]}"
        )


def main() -> None:
    """Run one step of attention and compare it with PyTorch's, branch by branch."""
    check_devices()
    pages, arrays = page_table()
    num_pages = pages[-1][-1] + 1
    shapes = (BRANCHES, HEADS, HEAD_DIM), (num_pages, KV_HEADS, PAGE_SIZE, HEAD_DIM)
    torch.manual_seed(0)
    q, k_pages, v_pages = (
        torch.randn(shape, dtype=torch.bfloat16, device="cuda")
        for shape in (shapes[0], shapes[1], shapes[1])
    )
    q_shape, k_shape = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in shapes)
    plain = Logits.plain(HEAD_DIM)
    spec = make_spec(q_shape, k_shape, plain, num_workers=num_multiprocessors())
    step = jax.jit(lambda *arrays: prepare(group_arrays(*arrays), spec))

    attention = TorchTreeAttention(spec)
    out, lse = attention(q, k_pages, v_pages, to_torch(step(*arrays)))

    expected = torch.stack(
        [branch_attention(q, k_pages, v_pages, pages, i) for i in range(BRANCHES)]
    )
    error = ((out.float() - expected).norm() / expected.norm()).item()
    print(f"out {tuple(out.shape)}, lse {tuple(lse.shape)}, relative error {error:.1e}")
    if not error < MAX_ERROR:
        raise SystemExit(f"expected an error below {MAX_ERROR}, got {error:.1e}")


if __name__ == "__main__":
    main()
