"""Compiles a case for a GPU that need not be there.

    python -m tests.support.kernels.compile_kernels KERNEL CASE

A process of its own, since what the hardware cannot do may abort it. It needs the CUDA
plugin (`jax[cuda13-local]`), neither a driver nor a GPU.
"""

import sys

import jax
from jax.experimental import topologies
from jax.experimental.mosaic.gpu import core, utils

from tests.support.kernels.kernel_cases import (
    COMPILED,
    KERNELS,
    PORTABLE,
    arguments,
    attention,
)

DEVICE = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: MAJOR minor: MINOR }
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""An H100, but for the compute capability."""


def compile_for(capability: tuple[int, int], function, *args) -> str:
    """Return the optimised program of a function, compiled to machine code too.

    Args:
        capability: compute capability to compile for.
        function: function of arrays.
        args: arrays or their shapes and dtypes, which alone are used.
    """
    program = compile_jitted(capability, jax.jit(function), *args)
    assert program is not None
    return program


def compile_jitted(capability: tuple[int, int], jitted, *args, **static) -> str | None:
    """Do as `compile_for` with what `jax.jit` gave, and static arguments."""
    major, minor = map(str, capability)
    # Without a device Mosaic GPU takes its target for Hopper.
    for module in (utils, core):
        if hasattr(module, "_infer_arch"):
            setattr(module, "_infer_arch", lambda: capability)  # noqa: B010
    config = DEVICE.replace("MAJOR", major).replace("MINOR", minor)
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=config, topology="1x1x1"
    )
    mesh = topologies.make_mesh(topology, (1,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def place(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    traced = jitted.trace(*jax.tree.map(place, args), **static)
    return traced.lower(lowering_platforms=("cuda",)).compile().as_text()


if __name__ == "__main__":
    kernel, case = (KERNELS | PORTABLE)[sys.argv[1]], COMPILED[sys.argv[2]]
    compile_for(kernel.capability, attention(case, kernel), *arguments(case))
