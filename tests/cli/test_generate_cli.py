"""The installed command with the real model: few processes, since each loads it.

What the calls ask for has one of two capacities, so that the module compiles twice: one
branch, or four, of one or two prompts, in 16 pages.
"""

import json
import os
import pty
import re
import signal
import subprocess
import sysconfig
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("smollm2_path")

COMMAND = Path(sysconfig.get_path("scripts")) / "deft-jax"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
DEADLINE_S = 300
STOP_S = 3.0
"""Seconds that a stop may take on a busy machine; compiling takes more."""
ITEMSIZE = {"float32": 4, "bfloat16": 2}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Make one compilation cache for the module: equal shapes compile once."""
    folder = tmp_path_factory.mktemp("compiled")
    return {**os.environ, "DEFT_JAX_CACHE": str(folder), "TERM": "xterm"}


def generate(environment, *arguments, text=""):
    return subprocess.run(
        [COMMAND, "generate", *arguments],
        input=text,
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=DEADLINE_S,
    )


def test_json_holds_every_branch(environment):
    process = generate(
        environment,
        *("--chat", "--prompt", QUESTION, "--n", "4", "--temperature", "0"),
        *("--max-new-tokens", "20", "--json"),
    )
    assert process.returncode == 0, process.stderr
    document = json.loads(process.stdout)
    (tree,) = document["results"]
    assert [branch["text"] for branch in tree["branches"]] == [ANSWER] * 4
    assert {branch["finish_reason"] for branch in tree["branches"]} == {"stop"}
    assert [node["parent"] for node in tree["nodes"]] == [None, 0, 0, 0, 0]
    stats = tree["stats"]
    token_bytes = stats["kv_bytes_read"] / stats["kv_tokens_read"]
    assert token_bytes == 2 * 3 * 64 * 30 * ITEMSIZE[document["dtype"]]
    paths_bytes = token_bytes * stats["kv_tokens_read_per_sequence"]
    assert stats["kv_bytes_read_per_sequence"] == paths_bytes
    assert 0 < stats["kv_read_saved"] == 1 - stats["kv_bytes_read"] / paths_bytes < 1
    assert "% saved" in process.stderr.splitlines()[-1]
    assert document["interrupted"] is False
    assert document["sampling"]["temperature"] == 0
    assert all(line.startswith("deft-jax: ") for line in process.stderr.splitlines())


def test_file_holds_every_branch_in_full(environment, tmp_path):
    path = tmp_path / "tree.txt"
    process = generate(
        environment,
        *("--prompt", "Once upon a time", "--n", "4", "--max-new-tokens", "100"),
        *("--output", path),
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""
    written = path.read_text()
    assert re.match(r"Once upon a time\n├─ 1 · \d+ tokens", written)
    assert len(written) > 4 * 300  # Branches are shown in 240 cells otherwise.


def test_formatted_prompt_has_control_tokens(environment):
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    arguments = ("--n", "1", "--temperature", "0", "--max-new-tokens", "20")
    process = generate(environment, "--special", *arguments, text=prompt + "\n")
    assert process.stdout == ANSWER + "\n", process.stderr
    plain = generate(environment, *arguments, text=prompt + "\n")
    assert plain.returncode == 0
    assert plain.stdout != process.stdout


@pytest.mark.parametrize(
    "arguments", [("--n", "1000000"), ("--n", "256", "--max-new-tokens", "4096")]
)
def test_more_branches_than_fit_are_refused_with_numbers(environment, arguments):
    process = generate(environment, "--prompt", "a", *arguments)
    assert process.returncode == 2
    assert process.stdout == ""
    [error] = process.stderr.splitlines()  # The weights are not loaded.
    assert re.match(r"deft-jax: error: \d+ branches in \d+ pages .* GiB", error)


def test_dtype_that_is_slow_on_a_cpu_is_announced(environment):
    arguments = ("--n", "1", "--max-new-tokens", "1", "--dtype", "bfloat16")
    process = generate(environment, *arguments, text="a")
    assert process.returncode == 0, process.stderr
    assert process.stderr.startswith("deft-jax: bfloat16 on a CPU is slower")


def test_single_branch_streams_to_a_pipe(environment):
    process = generate(
        environment,
        *("--chat", "--n", "1", "--temperature", "0", "--stop", " Paris"),
        text=QUESTION + "\n",
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == ANSWER.removesuffix(" Paris.") + "\n"


def test_prompts_vote_side_by_side(environment):
    process = generate(
        environment,
        *("--prompt", "1, 2, 3, 4, 5,", "--prompt", "One apple and 2 pears are"),
        *("--strategy", "self-consistency", "--answer-pattern", r"\w+"),
        *("--n", "2", "--temperature", "0", "--max-new-tokens", "8"),
    )
    assert process.returncode == 0, process.stderr
    first, second = process.stdout.split("One apple and 2 pears are\n")
    assert first.startswith("1, 2, 3, 4, 5,\n├─ 1 · ")
    assert "answer: 6 (2 of 2 votes)" in first
    assert "(2 of 2 votes)" in second


def test_closed_standard_error_does_not_spoil_the_output(environment):
    branches = ("--temperature", "0", "--n", "4", "--max-new-tokens", "8")
    process = subprocess.run(
        [
            "sh",
            "-c",
            'exec "$0" "$@" 2>&-',
            COMMAND,
            "generate",
            "--prompt",
            "p",
            *branches,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=DEADLINE_S,
    )
    assert process.stdout.startswith("p\n├─ 1 ")


def run_on_terminal(command, environment, marker, signals, hang_up=False):
    """Run on a pseudo terminal; send the signals once `marker` was written.

    With `hang_up` the terminal goes away together with the first signal.
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    output = b""
    try:
        while data := os.read(master, 4096):
            output += data
            if marker in output and signals:
                process.send_signal(signals.pop())
                if hang_up:
                    break
    except OSError:
        pass  # Linux reports the end of a pseudo terminal as an error.
    finally:
        os.close(master)
        code = process.wait()
        watchdog.cancel()
    return code, output.decode()


STORY = ("--prompt", "Once upon a time", "--n", "4", "--max-new-tokens", "190")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_on_a_terminal_keeps_what_there_is(environment, number):
    code, output = run_on_terminal(
        [COMMAND, "generate", *STORY],
        environment,
        marker=b"tokens/s",
        signals=[number],
    )
    assert code == 128 + number, output
    again = "press Ctrl-C again to abort" if number == signal.SIGINT else "a second"
    assert f"stopping; {again}" in output
    final = output[output.rindex("\x1b[?25h") :]
    assert "Once upon a time" in final
    assert final.count("interrupted") == 4
    assert "best branch" in final
    assert "Traceback" not in output


def test_signal_does_not_wait_for_the_compiler(environment, tmp_path):
    process = subprocess.Popen(
        [COMMAND, "generate", *STORY],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**environment, "DEFT_JAX_CACHE": str(tmp_path)},
    )
    assert process.stderr is not None
    while "preparing the prefill step" not in (line := process.stderr.readline()):
        assert line, process.wait()
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert time.monotonic() - begin < STOP_S
    assert process.returncode == 143
    assert out.startswith("\n") or "Once upon a time" in out
    first, last = err.splitlines()
    assert first == "deft-jax: stopping; a second signal aborts"
    assert last.startswith("deft-jax: 0 tokens")


def test_terminal_that_goes_away_leaves_the_file(environment, tmp_path):
    code, _ = run_on_terminal(
        [COMMAND, "generate", *STORY, "--json", "--output", tmp_path / "tree.json"],
        environment,
        marker=b"tokens/s",
        signals=[signal.SIGHUP],
        hang_up=True,
    )
    document = json.loads((tmp_path / "tree.json").read_text())
    (tree,) = document["results"]
    assert [b["finish_reason"] for b in tree["branches"]] == ["interrupted"] * 4
    assert document["interrupted"] is True
    assert code in (2, 129)  # An error if the counters were being drawn.


def test_interrupt_while_the_prompt_step_compiles_compiles_no_other(
    environment, tmp_path
):
    code, output = run_on_terminal(
        [COMMAND, "generate", *STORY],
        {**environment, "DEFT_JAX_CACHE": str(tmp_path)},
        marker=b"the prefill step",
        signals=[signal.SIGINT],
    )
    assert code == 130, output
    assert "decode step" not in output
    assert [path for path in tmp_path.iterdir() if "decode" in path.name] == []
    final = output[output.rindex("\x1b[?25h") :]
    assert "0 tokens" in final and "Traceback" not in output
