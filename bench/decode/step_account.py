"""What is known of a step without measuring it: bytes, operations, their least time."""

import dataclasses

import jax

from deft_jax.accounting.methods import AttentionSizes, KernelSizes, Method
from deft_jax.attention.backend import Backend, choose_backend
from deft_jax.attention.device import num_multiprocessors
from deft_jax.attention.hopper import make_spec
from deft_jax.attention.spec import Logits
from deft_jax.errors import DeftError

from ..methods.choice import CHUNK_TOKENS
from ..trees.workload import Workload
from .setting import Setting
from .step_ceilings import step_work

Shapes = tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]


def account(workload: Workload, method: Method, setting: Setting) -> dict:
    """Return the numbers that follow from the tree, the model and the method.

    Means over the steps; docs/benchmarks.md defines them.
    """
    config, dtype = setting.model.config, setting.model.dtype
    work = step_work(workload, config, dtype.itemsize)
    sizes = AttentionSizes.of(setting.model)
    io = workload.count_io(method, sizes, _kernel_sizes(workload, method, setting))
    steps = workload.template.steps
    mean = {name: round(n / steps) for name, n in dataclasses.asdict(io).items()}
    return {
        "weight_bytes": work.weight_bytes,
        "kv_bytes": round(float(work.kv_bytes.mean())),
        "partial_bytes": mean["partial_bytes"],
        "io": mean,
        "flops": round(float(work.flops.mean())),
        "roofline_ms": round(work.roofline_ms(setting.rates), 4),
    }


def implementation(workload: Workload, method: Method, setting: Setting) -> str:
    """Return the implementation that runs the attention of a method.

    Raises:
        DeftError: what was asked for cannot run here.
    """
    if method == "medusa":
        return "xla"
    try:
        backend = choose_backend(setting.implementation, *_shapes(workload, setting))
    except ValueError as error:
        raise DeftError(str(error)) from None
    if backend is Backend.PORTABLE and method != "deft_flatten":
        raise DeftError(
            f"the kernels of {method} are for compute capability 9.0, got another GPU;"
            " use --implementation xla"
        )
    return backend.implementation


def _kernel_sizes(workload: Workload, method: Method, setting: Setting) -> KernelSizes:
    if implementation(workload, method, setting) != "mosaic_gpu":
        return KernelSizes(chunk_tokens=CHUNK_TOKENS)
    plain = Logits.plain(setting.model.config.head_dim)
    shapes = _shapes(workload, setting)
    spec = make_spec(*shapes, plain, num_workers=num_multiprocessors())
    return dataclasses.replace(KernelSizes.of(spec), chunk_tokens=CHUNK_TOKENS)


def _shapes(workload: Workload, setting: Setting) -> Shapes:
    """Return the shapes of q and k_pages."""
    config, dtype = setting.model.config, setting.model.dtype
    size = workload.capacity(setting.page_size)
    q = size.rows, config.num_q_heads, config.head_dim
    pages = size.pages, config.num_kv_heads, size.page_size, config.head_dim
    return jax.ShapeDtypeStruct(q, dtype), jax.ShapeDtypeStruct(pages, dtype)
