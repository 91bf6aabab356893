"""Which device counts: the one where arrays lie, else the default one."""

import subprocess
import sys

import jax
import pytest

from deft_jax.attention import device


class Gpu:
    """A stand-in for a device."""

    def __init__(self, capability: str | None, platform: str = "gpu"):
        self.platform, self.compute_capability = platform, capability


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (Gpu("9.0"), (9, 0)),
        (Gpu("12.1"), (12, 1)),
        (Gpu("gfx942"), None),
        (Gpu(None), None),
        (Gpu("9.0", "cpu"), None),
    ],
)
def test_compute_capability(gpu, expected):
    assert device.compute_capability(gpu) == expected
    assert device.is_hopper(gpu) == (expected == (9, 0))


def test_the_default_device_is_the_one_that_is_configured():
    [cpu, *_] = jax.devices("cpu")
    for chosen in (cpu, "cpu"):
        with jax.default_device(chosen):
            assert device.default_device() == cpu


TWO_DEVICES = """
import jax, jax.numpy as jnp
from deft_jax.attention import device
from deft_jax.attention.backend import Backend, choose_backend
first, second = jax.devices()

def capability(asked=None):
    return (9, 0) if (asked or device.default_device()) == second else None

device.compute_capability = capability
q = jax.ShapeDtypeStruct((1, 2, 64), jnp.bfloat16)
k = jax.ShapeDtypeStruct((1, 1, 16, 64), jnp.bfloat16)
there, here = (jax.device_put(jnp.zeros(q.shape, q.dtype), d) for d in (second, first))
assert device.device_of(q, there, here) == second
assert choose_backend(None, q, k) is Backend.XLA
assert choose_backend(None, there, k) is Backend.HOPPER
with jax.default_device(second):
    assert choose_backend(None, q, k) is Backend.HOPPER
    assert choose_backend(None, here, k) is Backend.XLA
    chosen = []
    jax.eval_shape(lambda q: chosen.append(choose_backend(None, q, k)), q)
    assert chosen == [Backend.HOPPER]
"""


def test_arrays_on_another_device_choose_what_runs_there():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    run = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env={"PATH": "", "JAX_PLATFORMS": "cpu", **flags},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
