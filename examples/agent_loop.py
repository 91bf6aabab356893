"""Agents with a tool, several at once: each turn goes on where the last one ended.

    python examples/agent_loop.py "What is 17 * 23?" "What is 2.5 + 4?"

Requests of the same moment share their steps, and no part of a talk is read twice.
"""

import asyncio
import operator
import re
import sys

from deft_jax import DeftError, Engine, Sampling, Session
from deft_jax.models.load import load_model

EXAMPLE = "Question: What is 12 * 3?\ncalculate: 12 * 3\nresult: 36\nanswer: 36\n\n"
ACTIONS = ["calculate:", "answer:"]
SUM = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*([-+*])\s*(-?\d+(?:\.\d+)?)\s*")
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def calculate(text: str) -> str:
    """Return the result of two numbers and a sign between them, the agents' tool."""
    if (match := SUM.fullmatch(text)) is None:
        return "error, write two numbers with + - or * between them"
    return f"{OPERATORS[match[2]](float(match[1]), float(match[3])):g}"


async def converse(session: Session, question: str, turns: int = 4) -> str:
    """Return the conversation of an agent, of which the last line is its answer."""
    branch = await session.aopen(f"{EXAMPLE}Question: {question}\n")
    for _ in range(turns):
        action = ACTIONS[await branch.achoose(ACTIONS)]
        await branch.aextend(action)
        branch = await branch.fork().agenerate(stop="\n", max_new_tokens=24)
        if action == ACTIONS[1]:
            break
        await branch.aextend(f"\nresult: {calculate(branch.text)}\n")
    return branch.path_text().removeprefix(EXAMPLE)


async def answer_all(engine: Engine, questions: list[str]) -> list[str]:
    """Return the conversations of agents that run together."""
    async with engine.session(sampling=Sampling(temperature=0.0)) as session:
        return await asyncio.gather(*[converse(session, each) for each in questions])


def main() -> None:
    """Answer questions with the default model, and print the conversations."""
    questions = sys.argv[1:] or ["What is 17 * 23?"]
    try:
        engine = Engine(*load_model("smollm2-135m-instruct"))
        talks = asyncio.run(answer_all(engine, questions))
    except DeftError as error:
        raise SystemExit(str(error)) from None
    print(*talks, sep="\n\n")


if __name__ == "__main__":
    main()
