"""Which part of a step a kernel counts for."""

from deft_jax.bench.decode.components import component, scopes, split, unknown

PROGRAM = """
HloModule jit_decode, is_scheduled=true

%fused_computation.7 (p.1: f32[4]) -> f32[4] {
  %p.1 = f32[4]{0} parameter(0)
  ROOT %add.1 = f32[4]{0} add(%p.1, %p.1), metadata={op_name="jit(f)/sampling/add"}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0), metadata={op_name="a"}
  %loop-add.fusion.3 = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused_computation.7, \
metadata={op_name="jit(f)/while/body/layers/jit(_run_layer)/attention/mul" \
source_file="attention.py" source_line=3}
  %sort.12 = f32[4]{0} sort(%a), metadata={op_name="jit(f)/grouping/sort"}
  %bare.5 = f32[4]{0} negate(%a), metadata={op_name="jit(f)/attention_like/neg"}
  %none = f32[4]{0} negate(%a)
  ROOT %fusion.1 = f32[4]{0} fusion(%a), metadata={op_name="jit(f)/layers/dot"}
}
"""


def test_scopes_are_found_by_the_names_of_kernels():
    assert scopes(PROGRAM) == {
        "add_1": "sampling_ms",
        "a": "other_ms",
        "loop_add_fusion_3": "attention_ms",
        "sort_12": "grouping_ms",
        "bare_5": "other_ms",
        "none": "other_ms",
        "fusion_1": "model_ms",
        "p_1": "other_ms",
    }


def test_the_innermost_scope_counts():
    assert component("jit(f)/layers/while/body/attention/dot") == "attention_ms"
    assert component("jit(f)/layers/kv_write/scatter") == "model_ms"
    assert component("jit(f)/grouping/tree_operations/copy") == "tree_ops_ms"
    assert component("jit(f)/attention/layers/dot") == "model_ms"
    assert component("jit(f)/tree_operations/cond") == "tree_ops_ms"


def test_a_scope_is_a_whole_part_of_a_path():
    assert component("jit(layers)/my_attention/dot") == "other_ms"
    assert component("") == "other_ms"


def test_kernels_are_summed_by_component():
    kernels = {
        "loop_add_fusion_3": 1.0,
        "mosaic_gpu_kernel": 2.0,
        "sort_12": 4.0,
        "DeviceRadixSortKernel": 8.0,
        "nvjet_tst_64x8": 16.0,
        "cublas_splitk": 32.0,
        "fusion_1": 64.0,
        "bare_5": 128.0,
        "memcpy32_post": 256.0,
        "RunTopK": 512.0,
    }
    assert split(kernels, PROGRAM) == {
        "attention_ms": 3.0,
        "grouping_ms": 12.0,
        "model_ms": 112.0,
        "other_ms": 384.0,
        "tree_ops_ms": 512.0,
    }
    assert unknown(kernels, PROGRAM) == ["nvjet_tst_64x8", "cublas_splitk"]
