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
