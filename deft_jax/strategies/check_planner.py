"""A check of a planner without a model: what its `plan` traces to."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from deft_jax.capacity import Capacity
from deft_jax.errors import DeftError
from deft_jax.sampling.params import SamplingRows
from deft_jax.sampling.request_table import RequestTable
from deft_jax.strategies.check_plan import check_shapes
from deft_jax.strategies.node_values import first_carry, first_score
from deft_jax.strategies.protocol import Planner, View
from deft_jax.tree.state import Tree

BIASES = 16
"""Entries of the bias table in the made-up view."""

ENDS = 16
"""Entries of the table of ends in it."""


def check_planner(planner: Planner, capacity: Capacity, vocab_size: int = 256) -> None:
    """Check that a planner can be part of the decode loop.

    Args:
        planner: what is traced.
        capacity: what the engine would hold.
        vocab_size: size of the vocabulary.

    Raises:
        DeftError: the planner is not hashable, its plan or its next state have other
            shapes than they must, or one of its loops goes wrong on a GPU: in a CUDA
            graph a `while_loop` must compute its condition. A loop that only carries a
            flag, such as `while_loop(lambda x: x.goes_on, ...)`, has gone wrong there
            (JAX 0.11.2).
    """
    try:
        hash(planner)
    except TypeError as error:
        raise DeftError(f"a planner must be hashable, but {error}") from None
    state, view = jax.eval_shape(
        lambda: (planner.init(capacity), _view(planner, capacity, vocab_size))
    )
    traced = jax.make_jaxpr(planner.plan, return_shape=True)
    jaxpr, (after, plan) = traced(state, view)
    check_shapes(view, plan)
    if _shapes(after) != _shapes(state):
        raise DeftError(
            f"the planner's next state must have the shapes of its first, "
            f"{_shapes(state)}, got {_shapes(after)}"
        )
    for condition in _conditions(jaxpr.jaxpr):
        if _only_reads_flags(condition.jaxpr):
            raise DeftError(
                "a while_loop of the planner only carries a flag, which goes wrong in "
                "a CUDA graph; compute its condition from a number, such as a counter"
            )


def _view(planner: Planner, capacity: Capacity, vocab_size: int) -> View:
    """Return a view with the shapes of an engine's, in which all rows are idle."""
    rows, requests = capacity.rows, capacity.requests
    return View(
        tree=Tree.create(capacity.nodes, capacity.pages, capacity.page_size),
        table=RequestTable(
            sampling=SamplingRows.create(requests, BIASES),
            max_new_tokens=jnp.ones(requests, jnp.int32),
            eos=jnp.zeros((requests, ENDS), jnp.int32),
        ),
        node=jnp.full(rows, capacity.nodes, jnp.int32),
        request=jnp.full(rows, requests, jnp.int32),
        number=jnp.zeros(rows, jnp.int32),
        generated=jnp.zeros(rows, jnp.int32),
        logits=jnp.zeros((rows, vocab_size), jnp.float32),
        token=jnp.zeros(rows, jnp.int32),
        logprob=jnp.zeros(rows, jnp.float32),
        finish=jnp.zeros(rows, jnp.int32),
        roots=jnp.full(requests, capacity.nodes, jnp.int32),
        carry=first_carry(planner, capacity.nodes),
        score=first_score(planner, capacity.nodes),
    )


def _shapes(tree) -> list[str]:
    """Return the places, shapes and dtypes of a pytree's arrays."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        f"{jax.tree_util.keystr(path)} {x.dtype}{list(x.shape)}" for path, x in leaves
    ]


def _conditions(jaxpr: Jaxpr) -> Iterator[ClosedJaxpr]:
    """Yield the conditions of all while loops, those inside other functions too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "while":
            yield eqn.params["cond_jaxpr"]
        for inner in _inner(eqn):
            yield from _conditions(inner)


def _inner(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield the functions that an operation calls."""
    for param in eqn.params.values():
        for item in param if isinstance(param, tuple | list) else [param]:
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _only_reads_flags(condition: Jaxpr) -> bool:
    """Return whether a loop's condition depends on booleans alone."""
    used = {
        variable
        for variables in [condition.outvars, *(eqn.invars for eqn in condition.eqns)]
        for variable in variables
        if not isinstance(variable, Literal)
    }
    read = [x for x in (*condition.constvars, *condition.invars) if x in used]
    return all(x.aval.str_short() == "bool[]" for x in read)
