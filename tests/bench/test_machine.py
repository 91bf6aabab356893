"""What reports say of the machine."""

import os
from importlib.metadata import version

from deft_jax.bench.machine import cpu_model, machine_facts, usable_cores


def test_the_facts_name_processor_cores_and_versions():
    facts = machine_facts()
    assert facts["device"] == "cpu"
    assert facts["deft_jax"] == version("deft-jax")
    assert facts["jax"] == version("jax")
    cores = facts["cores"]
    assert isinstance(cores, int) and 1 <= cores <= (os.cpu_count() or 1)
    assert cores == usable_cores()
    assert facts["cpu"] == cpu_model() not in ("", "cpu")
