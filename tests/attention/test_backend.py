"""Which implementation is picked, and what a caller is told."""

import re
import warnings

import jax
import jax.numpy as jnp
import pytest

from deft_jax.attention import backend as backend_module
from deft_jax.attention import device as device_module
from deft_jax.attention.backend import Backend, choose_backend, device_backend
from deft_jax.errors import DeftError

HOPPER, AMPERE = (9, 0), (8, 0)


def arrays(dtype="bfloat16", head_dim=128, page_size=64, queries=4):
    q = jax.ShapeDtypeStruct((queries, 8, head_dim), jnp.dtype(dtype))
    k_pages = jax.ShapeDtypeStruct((3, 2, page_size, head_dim), jnp.dtype(dtype))
    return q, k_pages


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch):
    """Set the compute capability; warnings are given anew."""
    backend_module._use_xla.cache_clear()

    def pretend(capability):
        monkeypatch.setattr(
            device_module, "compute_capability", lambda device=None: capability
        )

    yield pretend
    backend_module._use_xla.cache_clear()


def test_a_cpu_takes_xla_without_a_word():
    assert device_backend(None) is Backend.XLA
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend(None, *arrays()) is Backend.XLA


def test_hopper_takes_the_kernels(device):
    device(HOPPER)
    assert device_backend(None) is Backend.HOPPER
    assert choose_backend(None, *arrays()) is Backend.HOPPER


UNSUPPORTED = {
    "dtype": ({"dtype": "float32"}, "dtype float32 is none of bfloat16, float16"),
    "head_dim": ({"head_dim": 72}, "head_dim 72 is none of 64, 80, 96, 128, 256"),
    "page_size": ({"page_size": 24}, "page size 24 is no multiple of 16"),
    "queries": ({"queries": 70000}, "70000 query tokens are more than 65535"),
}


@pytest.mark.parametrize(("shape", "reason"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_arrays_that_the_kernels_do_not_take_go_to_xla_with_one_warning(
    device, shape, reason
):
    device(HOPPER)
    expected = f"tree_attention uses 'xla' instead of 'mosaic_gpu': {reason}"
    with pytest.warns(UserWarning, match=re.escape(expected)):
        assert choose_backend(None, *arrays(**shape)) is Backend.XLA
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend(None, *arrays(**shape)) is Backend.XLA


@pytest.mark.parametrize(("shape", "reason"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_asking_for_them_by_name_raises(device, shape, reason):
    device(HOPPER)
    with pytest.raises(DeftError, match=re.escape(f"{reason}; use 'xla'")):
        choose_backend("mosaic_gpu", *arrays(**shape))


def test_another_gpu_takes_xla_with_a_warning(device):
    device(AMPERE)
    with pytest.warns(UserWarning, match=r"compute capability 9\.0, this is 8\.0"):
        assert choose_backend(None, *arrays()) is Backend.XLA


def test_without_a_gpu_the_kernels_cannot_be_asked_for():
    with pytest.raises(DeftError, match="needs an NVIDIA GPU, got cpu; use 'xla'"):
        choose_backend("mosaic_gpu", *arrays())


def test_another_gpu_takes_the_kernels_when_asked_by_name(device):
    device(AMPERE)
    assert choose_backend("mosaic_gpu", *arrays()) is Backend.PORTABLE


def test_short_pages_of_80_elements_need_bulk_copies(device):
    shape = arrays(head_dim=80, page_size=16)
    device(HOPPER)
    assert choose_backend("mosaic_gpu", *shape) is Backend.HOPPER
    device(AMPERE)
    with pytest.raises(DeftError, match="page size 16 is no multiple of 32"):
        choose_backend("mosaic_gpu", *shape)
