"""Runs one of the interpreter's cases on a GPU, for tools that watch the kernels.

    compute-sanitizer python -m tests.support.kernels.run_small_case NAME

All but the kernels runs on the CPU, since such tools slow every kernel down.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.attention.hopper import attend, make_spec
from deft_jax.attention.kernel_inputs import prepare
from deft_jax.attention.spec import Logits
from tests.pallas_kernels.grouped_partial_attention.test_hopper_interpreted import (
    CASES,
    ERROR,
    TWO_STAGES,
    expected_results,
)
from tests.support.attention_checks import inputs
from tests.support.forest_plans import Plan
from tests.support.forests import grow


def main(name: str) -> None:
    """Compare a case with the oracle."""
    case, plan, workers = CASES[name]
    with jax.default_device(jax.devices("cpu")[0]):
        args = inputs(case, grow(Plan(case.limits, **plan)), seed=1)
        expected, _ = expected_results(case, args)
        logits = Logits(case.heads.head_dim**-0.5, case.window, case.soft_cap)
        options = {"config": TWO_STAGES, "num_workers": workers}
        spec = make_spec(args.q, args.poisoned[0], logits, **options)
        prepared = prepare(args.grouping, spec)
    arrays = jax.device_put((args.q, *args.poisoned, prepared), jax.devices()[0])
    run = jax.jit(lambda q, k, v, prepared: attend(spec, q, k, v, prepared))
    out = np.asarray(run(*arrays)[0].astype(jnp.float32))
    error = np.linalg.norm(out - expected) / max(np.linalg.norm(expected), 1.0)
    print(f"{name}: merged by the attention: {spec.fused}, relative error {error:.1e}")
    assert error <= ERROR


if __name__ == "__main__":
    main(sys.argv[1])
