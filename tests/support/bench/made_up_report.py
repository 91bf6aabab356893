"""A benchmark report with made-up numbers; nothing in it was measured."""

METHODS = {
    "flash_decoding": (18.0, 1.0),
    "medusa": (6.0, 0.4),
    "radix": (2.4, 0.0),
    "deft_node": (2.0, 0.2),
    "deft_node_chunk": (1.5, 0.2),
    "deft_flatten": (1.0, 0.1),
}
"""Attention in units of one pass over the KV, and grouping in ms."""

NONE = ("peak_bytes", "ttft_ms")
"""What the first method did not measure."""


def made_up_run(
    workload: str, parameters: dict, method: str, tokens: int, width: int
) -> dict:
    """Return a run whose times follow from few numbers, none of them real."""
    passes, grouping_ms = METHODS[method]
    kv_bytes = tokens * 131072
    steps = parameters.get("steps", 111)
    attention_ms = round(passes * (kv_bytes / 3e9 + 0.1), 3)
    parts = {
        "model_ms": 5.5 + 0.01 * width,
        "attention_ms": attention_ms,
        "grouping_ms": grouping_ms,
        "tree_ops_ms": 0.05,
        "sampling_ms": 0.2 + 0.002 * width,
        "other_ms": 0.15,
    }
    step_ms = round(sum(parts.values()), 3)
    weight_bytes = 16_060_522_496
    roofline_ms = (weight_bytes + kv_bytes) / 3.1e9
    return {
        "workload": workload,
        "parameters": parameters,
        "method": method,
        "implementation": "mosaic_gpu",
        "steps": steps,
        "step_ms": step_ms,
        **parts,
        "ttft_ms": 222.2,
        "prefill_ms": 111.1,
        "decode_s": step_ms * steps / 1e3,
        "end_to_end_s": step_ms * steps / 1e3 + 0.2222,
        "time_per_output_token_ms": step_ms / width,
        "tokens_per_s": 1e3 * width / step_ms,
        "weight_bytes": weight_bytes,
        "kv_bytes": kv_bytes,
        "partial_bytes": width * 123_456 if method != "radix" else 0,
        "io": {
            "kv_bytes": int(kv_bytes * max(1.0, passes)),
            "query_output_bytes": width * 524_288,
            "mask_bytes": width * tokens if method == "medusa" else 0,
            "intermediate_bytes": width * tokens * 99 if method == "medusa" else 0,
            "partial_bytes": width * 123_456 if method != "radix" else 0,
        },
        "roofline_ms": round(roofline_ms, 3),
        "roofline_fraction": roofline_ms / step_ms,
        "peak_bytes": 33_333_333_333,
        "flops": width * 16_000_000_000,
    }


def made_up_runs(methods: list[str], widths: list[int], prompts: list[int]):
    """Make up a run of each method; the first one's widest is out of memory."""
    for prompt in prompts:
        for width in widths:
            where = {"prompt_tokens": prompt, "width": width, "steps": 399}
            for method in methods:
                run = made_up_run(
                    "few-shot", where, method, prompt + 200 * width, width
                )
                if method == methods[0]:
                    run |= dict.fromkeys(NONE)
                yield run


def made_up_report(
    methods: tuple[str, ...] = tuple(METHODS),
    widths: tuple[int, ...] = (20, 30, 50),
    prompts: tuple[int, ...] = (4000,),
    others: bool = True,
) -> dict:
    """Return a whole report.

    Args:
        methods: names out of METHODS.
        widths: numbers of branches of the few-shot trees.
        prompts: their prompts' lengths.
        others: whether the other workloads are in it, and a run that failed.
    """
    runs = list(made_up_runs(list(methods), list(widths), list(prompts)))
    if others:
        for method in methods:
            for tree in (0, 1):
                where = {"task": "sorting", "tree": tree, "prompt_tokens": 999}
                runs.append(made_up_run("reasoning", where, method, 5555 + tree, 9))
            for drafts in (64, 256):
                where = {"drafts": drafts, "tree": "star", "prompt_tokens": 1016}
                where["tokens"] = 6000
                runs.append(made_up_run("speculative", where, method, 4444, drafts))
            runs.append(made_up_run("trees", {"name": "1, 1024"}, method, 34816, 1024))
        failed = next(r for r in runs if r["parameters"].get("drafts") == 256)
        kept = ("workload", "parameters", "method", "implementation")
        runs[runs.index(failed)] = {name: failed[name] for name in kept} | {
            "error": "out of memory: needs 88 GB of 80"
        }
    return {
        "device": "Made-up GPU 80GB",
        "jax": "0.0.0",
        "date": "1999-12-31",
        "read_gbs": 3100.0,
        "matrix_tflops": 777.7,
        "card": {
            "shape": "llama3_8b",
            "dtype": "bfloat16",
            "layers": 32,
            "page_size": 16,
            "numbers": "made up, nothing was measured",
        },
        "runs": runs,
    }
