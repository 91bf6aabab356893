"""Trees from the text of an option."""

from deft_jax.errors import DeftError

from .templates import TreeTemplate, level_tree, random_search


def parse_levels(text: str) -> TreeTemplate:
    """Parse a level tree, "1,4,16;256,64,32": nodes per level; tokens per node.

    Raises:
        DeftError: it is no such text, or there is no such tree.
    """
    try:
        nodes, tokens = (list(map(int, part.split(","))) for part in text.split(";"))
    except ValueError:
        raise DeftError(
            "--levels: expected nodes of each level and tokens of each of its nodes, as"
            f" in '1,4,16;256,64,32', got {text!r}"
        ) from None
    return level_tree(nodes, tokens)


def parse_search(text: str) -> TreeTemplate:
    """Parse a random search, "width,depth,branch rate,prune rate,seed".

    Raises:
        DeftError: it is no such text, or there is no such tree.
    """
    try:
        width, depth, branch, prune, seed = text.split(",")
        counts = int(width), int(depth)
        rates = float(branch), float(prune)
        known = min(counts) >= 1 and all(0 <= rate <= 1 for rate in rates)
        if not known:
            raise ValueError("out of range")
        return random_search(*counts, *rates, seed=int(seed))
    except ValueError:
        raise DeftError(
            "--searches: expected width and depth of at least 1, branch and prune rate"
            f" from 0 to 1, and a seed, as in '4,6,0.5,0.3,0', got {text!r}"
        ) from None
