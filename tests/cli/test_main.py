import threading
import warnings

import pytest

from deft_jax.cli import generate, main
from deft_jax.errors import DeftError


def run_with(monkeypatch, error):
    def fail(options):
        raise error

    monkeypatch.setattr(generate, "generate", fail)
    return main.main(["generate", "--prompt", "p"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DeftError("expected 1,\n got 2"), "expected 1, got 2"),
        (FileNotFoundError(2, "No such file", "a\x1b"), "a\\x1b: No such file"),
        (OSError("disk on fire"), "disk on fire"),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 GiB"), "the device is out of memory"),
        (RuntimeError("Out of memory allocating 9 bytes"), "the device is out of"),
        (MemoryError(), "the device is out of memory"),
    ],
)
def test_errors_are_one_line_and_code_2(monkeypatch, capsys, error, message):
    assert run_with(monkeypatch, error) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"deft-jax: error: {message}")
    assert output.err.count("\n") == 1


def test_interrupt_is_code_130(monkeypatch, capsys):
    assert run_with(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_other_errors_are_bugs(monkeypatch):
    with pytest.raises(RuntimeError, match="bug"):
        run_with(monkeypatch, RuntimeError("bug"))


def test_warnings_are_one_line_each_from_any_thread(monkeypatch, capsys):
    def run(options):
        warnings.simplefilter("always")
        warnings.warn("weights hold\n NaN\x1b", stacklevel=2)
        thread = threading.Thread(target=lambda: warnings.warn("too", stacklevel=1))
        thread.start()
        thread.join()
        return 0

    monkeypatch.setattr(generate, "generate", run)
    assert main.main(["generate", "--prompt", "p"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "deft-jax: warning: weights hold ↵ NaN\\x1b",
        "deft-jax: warning: too",
    ]
    assert warnings.showwarning is not main._show_warning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "hi"], "unrecognized arguments: hi; give a prompt by --prompt"),
        (["generate", "--hi"], "unrecognized arguments: --hi\n"),
        (["info", "hi"], "unrecognized arguments: hi\n"),
        (["info", "a\nb\x1b"], "unrecognized arguments: a ↵ b\\x1b\n"),
        (["info", "--model", ""], "argument --model: expected at least 1 character"),
        (["bench", "trees", "--model", ""], "argument --model: expected at least 1"),
        ([], "the following arguments are required: COMMAND; see deft-jax --help"),
        (["bench"], "required: WORKLOAD; see deft-jax bench --help"),
        (["generate", "--answer-pattern", "a{99999999999}"], "repetition number"),
        (["generate", "--answer-pattern", "(" * 9999], "regular expression"),
    ],
)
def test_errors_in_the_arguments_say_what_to_do(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error and error.count("\n") == 1
