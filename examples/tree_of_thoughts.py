"""Tree of Thoughts: propose thoughts, judge them, go on from the best (2305.10601).

    python examples/tree_of_thoughts.py "Three friends share five apples. How?"

Each level is four operations of a group, whose branches run in the same steps. What
the branches share is stored once, and what is not kept is freed.
"""

import argparse

from deft_jax import DeftError, Engine, Sampling
from deft_jax.models.load import load_model

JUDGE = "\nIs this step right and useful? Answer sure, likely or impossible: "
VERDICTS = ["sure", "likely", "impossible"]


def think(
    engine: Engine, problem: str, *, depth: int = 3, thoughts: int = 4, width: int = 2
) -> str:
    """Return the problem with the chain of thoughts that was judged best.

    Args:
        engine: decodes the branches.
        problem: what to think about.
        depth: thoughts in a chain.
        thoughts: thoughts that are tried behind each chain.
        width: chains that are kept.
    """
    sampling = Sampling(temperature=0.8, max_new_tokens=40, stop=("\n",))
    with engine.session(sampling=sampling) as session:
        chains = session.open_all([f"Problem: {problem}\n"])
        for step in range(1, depth + 1):
            tried = chains.fork(thoughts).extend(f"Step {step}:").generate()
            verdicts = tried.fork().extend(JUDGE).choose(VERDICTS)
            chains = tried.keep(verdicts, width).extend("\n")
        answers = chains.extend("So the answer is").generate()
        return answers.keep(answers.logprob, 1, highest=True)[0].path_text()


def main() -> None:
    """Think with the default model, and print the best chain."""
    parser = argparse.ArgumentParser(description="Tree of Thoughts.")
    parser.add_argument(
        "problem", nargs="?", default="Three friends share five apples. How?"
    )
    try:
        engine = Engine(*load_model("smollm2-135m-instruct"))
        print(think(engine, parser.parse_args().problem))
    except DeftError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
