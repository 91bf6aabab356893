"""Best-first search as a host program: the most promising branches anywhere go on.

    python examples/best_first_program.py "Plan a picnic for a rainy day."

Branches wait in a queue, however long; each round the best of them get children, all
in the same steps. `examples/best_first.py` is such a search on the device, by tokens.
"""

import argparse
import heapq
import itertools

from deft_jax import DeftError, Engine, Sampling
from deft_jax.models.load import load_model

ASK = "\nIs this plan good so far? Answer yes or no:"


def search(
    engine: Engine, task: str, *, rounds: int = 3, at_once: int = 2, children: int = 3
) -> list[tuple[float, str]]:
    """Return what was found, the best first, with the log-odds of being bad.

    Args:
        engine: decodes the branches.
        task: what to plan.
        rounds: how often branches are taken from the queue.
        at_once: branches that are taken together.
        children: continuations of each.
    """
    sampling = Sampling(temperature=0.8, max_new_tokens=24, stop=("\n",))
    number = itertools.count()  # Equal scores: what came first is first.
    with engine.session(sampling=sampling) as session:
        queue = [(0.0, next(number), session.open(f"Task: {task}\nPlan:"))]
        for _ in range(rounds):
            best = [heapq.heappop(queue)[2] for _ in range(min(at_once, len(queue)))]
            grown = session.group(best).fork(children).extend("\n-").generate()
            scores = grown.fork().extend(ASK).score([" yes", " no"])
            for branch, (yes, no) in zip(grown, scores, strict=True):
                heapq.heappush(queue, (no - yes, next(number), branch))
        return [(score, branch.path_text()) for score, _, branch in sorted(queue)]


def main() -> None:
    """Search with the default model, and print the best plan."""
    parser = argparse.ArgumentParser(description="Best-first search over branches.")
    parser.add_argument("task", nargs="?", default="Plan a picnic for a rainy day.")
    try:
        engine = Engine(*load_model("smollm2-135m-instruct"))
        score, text = search(engine, parser.parse_args().task)[0]
    except DeftError as error:
        raise SystemExit(str(error)) from None
    print(f"{text}\n(log-odds of yes: {-score:.2f})")


if __name__ == "__main__":
    main()
