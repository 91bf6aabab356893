"""The command as a process: closed streams, full disks, odd environments, signals."""

import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

COMMAND = Path(sysconfig.get_path("scripts")) / "deft-jax"
DEADLINE_S = 120
GENERATE = ("generate", "--prompt", "p", "--n", "1")


def run(*arguments, shell="", text="", **variables):
    """Run the command, with `shell` behind it for redirections."""
    line = ["sh", "-c", f'exec "$0" "$@" {shell}', COMMAND, *arguments]
    return subprocess.run(
        line,
        input=text,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | variables,
        timeout=DEADLINE_S,
    )


def fails_with_one_line(process):
    """Check for an error on one line and code 2; return the line."""
    assert process.returncode == 2, process.stderr
    (line,) = process.stderr.splitlines()
    assert line.startswith("deft-jax: error: ")
    return line.removeprefix("deft-jax: error: ")


@pytest.mark.parametrize(
    ("command", "closed"), [(GENERATE, ">&-"), (("info",), "<&- >&-")]
)
def test_closed_standard_output_is_an_error(command, closed):
    line = fails_with_one_line(run(*command, shell=closed))
    assert line == "standard output is closed; redirect it to a file or a pipe"


def test_closed_standard_error_leaves_a_wrong_argument_its_code():
    wrong = run("--nonsense", shell="2>&-")
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", "")


def test_full_disk_is_an_error():
    line = fails_with_one_line(run("info", shell="> /dev/full"))
    assert line == "No space left on device"


@pytest.mark.parametrize(
    ("command", "platform"),
    [(GENERATE, "cuda"), (("info",), "nonsense"), (("tune",), "cpu,nonsense")],
)
def test_platform_that_is_not_there_is_named(command, platform):
    line = fails_with_one_line(run(*command, JAX_PLATFORMS=platform))
    assert line.startswith(f"JAX cannot start with JAX_PLATFORMS={platform}: ")


@pytest.mark.parametrize("command", [GENERATE, ("info",)])
def test_kernels_need_a_gpu(command):
    line = fails_with_one_line(run(*command, "--implementation", "mosaic_gpu"))
    assert line.startswith("--implementation mosaic_gpu needs an NVIDIA GPU, got cpu")


@pytest.mark.parametrize("command", [GENERATE, ("info",)])
def test_model_of_an_unknown_user_is_unknown(command):
    line = fails_with_one_line(run(*command, "--model", "~nosuchuser/x"))
    assert line.startswith("~nosuchuser/x: no such model")


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (GENERATE, signal.SIGINT),
        (GENERATE, signal.SIGTERM),
        (GENERATE, signal.SIGHUP),
        (("info",), signal.SIGINT),
    ],
)
def test_signal_during_imports_ends_the_command(command, number):
    process = subprocess.Popen(
        [COMMAND, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    mappings, end = Path(f"/proc/{process.pid}/maps"), time.monotonic() + DEADLINE_S
    # The extension modules of JAX are mapped one by one while `import jax` runs.
    while "jaxlib" not in mappings.read_text() and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err) == (128 + number, "", "")


def test_interrupt_while_standard_input_is_awaited():
    process = subprocess.Popen(
        [COMMAND, "generate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_channel = Path(f"/proc/{process.pid}/syscall")
    end = time.monotonic() + DEADLINE_S
    # 0 0x0: read from standard input.
    while not wait_channel.read_text().startswith("0 0x0 ") and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err) == (130, b"", b"")


# argparse drops errors of writing the help.
@pytest.mark.parametrize(
    ("arguments", "codes"), [(["generate", "--help"], {0, 141}), (["info"], {141})]
)
def test_reader_that_goes_away_ends_the_command_quietly(arguments, codes):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [COMMAND, *arguments], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert process.stderr == b""
    assert process.returncode in codes
