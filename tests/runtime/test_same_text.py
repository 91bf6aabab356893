"""The same seed gives the same text, whatever else is decoded: with a real network.

Its 49152 tokens and a temperature of 1 leave the draws room to part.
"""

from deft_jax.engine.engine import Engine
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN

PROMPTS = ["The sea", "Once upon a time", "def main():"]
SAMPLING = Sampling(max_new_tokens=12, ignore_eos=True, seed=11)


def test_branches_do_not_depend_on_the_batch(smollm2):
    """Engines of 2, of 4 and of 12 rows, whose products round differently."""

    def branches(prompts, n):
        trees = Engine(*smollm2).generate(prompts, BestOfN(n), SAMPLING)
        return {
            (tree.prompt, number): leaf.tokens
            for tree in trees
            for number, leaf in enumerate(tree.leaves())
        }

    together = branches(PROMPTS, 4)
    assert len(set(together.values())) == 12
    for alone in (branches(PROMPTS[0], 2), branches(PROMPTS[1], 4)):
        assert alone == {name: together[name] for name in alone}
