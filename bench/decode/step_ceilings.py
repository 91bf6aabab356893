"""What a decode step cannot beat: reading weights and KV once, and the products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.attention.tuning.search import wall_seconds
from deft_jax.models.config.config import LlamaConfig

from ..gpu.ceilings import measure_ceilings
from ..gpu.timing import KernelTimer, l2_eviction, record_kernels
from ..trees.workload import Workload

CPU_READ_ROWS, CPU_READ_WIDTH = 2**15, 2**11
CPU_MATRIX_SIZE = 1024


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of the device, measured.

    Attributes:
        read_gbs: reading a large buffer once.
        matrix_tflops: a large square product.
    """

    read_gbs: float
    matrix_tflops: float


@dataclasses.dataclass(frozen=True)
class StepWork:
    """What the steps of a workload must read and compute, whatever the method.

    Attributes:
        weight_bytes: weights that every step reads.
        kv_bytes: [S], unique KV of each step.
        flops: [S], of layers, head and attention.
    """

    weight_bytes: int
    kv_bytes: np.ndarray
    flops: np.ndarray

    def roofline_ms(self, rates: Rates) -> float:
        """Return the least time of a step, the mean over the steps."""
        read = (self.weight_bytes + self.kv_bytes) / rates.read_gbs / 1e6
        compute = self.flops / rates.matrix_tflops / 1e9
        return float(np.maximum(read, compute).mean())


def measure_rates(dtype: jnp.dtype) -> Rates:
    """Measure the default device: by CUPTI on a GPU, by the wall clock elsewhere."""
    if jax.default_backend() == "gpu":
        timer = KernelTimer(record_kernels, l2_eviction())
        ceilings = measure_ceilings(timer, 10, cold_reads_mib=())
        return Rates(ceilings.read_gbs, ceilings.matrix_tflops)
    return _wall_rates(dtype)


def _wall_rates(dtype: jnp.dtype) -> Rates:
    """Take the best of three ways to read a buffer; one is a row times a matrix."""
    buffer = jnp.ones((CPU_READ_WIDTH, CPU_READ_ROWS), jnp.float32)
    row = jnp.ones((1, CPU_READ_WIDTH), jnp.float32)
    forms = jnp.sum, jnp.max, lambda x: row @ x
    read_s = min(
        wall_seconds(functools.partial(jax.jit(form), buffer)) for form in forms
    )
    matrix = jnp.ones((CPU_MATRIX_SIZE, CPU_MATRIX_SIZE), dtype)
    dot_s = wall_seconds(functools.partial(jax.jit(jnp.dot), matrix, matrix))
    return Rates(
        read_gbs=round(buffer.nbytes / read_s / 1e9, 1),
        matrix_tflops=round(2 * CPU_MATRIX_SIZE**3 / dot_s / 1e12, 4),
    )


def step_work(workload: Workload, config: LlamaConfig, itemsize: int) -> StepWork:
    """Return the work of a workload's steps.

    Args:
        workload: the tree.
        config: the model's shape.
        itemsize: bytes of a weight and of a number of KV.
    """
    template = workload.template
    embedding = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    weights = config.num_parameters - embedding
    token_bytes = (
        2 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize
    )
    pair_flops = 4 * config.num_layers * config.num_q_heads * config.head_dim
    return StepWork(
        weight_bytes=weights * itemsize,
        kv_bytes=template.live_tokens * token_bytes,
        flops=2 * weights * template.live_width + pair_flops * template.path_tokens,
    )
