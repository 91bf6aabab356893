import json
import os

import pytest

from deft_jax.cli.outcome_file import check_writable, write_outcome
from deft_jax.errors import DeftError
from tests.cli.test_plain_output import make_tree

LONG = " ".join(f"word{index}" for index in range(100))


def test_text_has_every_branch_in_full(tmp_path):
    path = tmp_path / "tree.txt"
    write_outcome(str(path), False, ["p"], [make_tree(LONG, "best \udcff北")], {})
    written = path.read_text("utf-8")
    assert all(word in written for word in LONG.split())
    assert written.endswith("best branch (2):\nbest \\udcff北\n")


def test_json_is_one_document(tmp_path):
    path = tmp_path / "tree.json"
    write_outcome(str(path), True, ["p"], [make_tree(LONG)], {"model": "m"})
    document = json.loads(path.read_text())
    assert document["model"] == "m"
    assert document["results"][0]["branches"][0]["text"] == LONG


def test_full_disk_names_the_file():
    with pytest.raises(OSError, match="No space left") as error:
        write_outcome("/dev/full", False, ["p"], [make_tree("a")], {})
    assert error.value.filename == "/dev/full"


def test_writable_places_are_accepted(tmp_path):
    (tmp_path / "old").write_text("")
    for path in (tmp_path / "new", tmp_path / "old", "/dev/null"):
        check_writable(str(path))
    assert not (tmp_path / "new").exists()


def test_places_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DeftError, match="there is no folder"):
        check_writable(str(tmp_path / "none" / "file"))
    with pytest.raises(DeftError, match="expected a file, got a folder"):
        check_writable(str(tmp_path))
    # Root may write everywhere, whatever the mode says.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DeftError, match="no permission"):
        check_writable(str(tmp_path / "file"))
