"""Pins are released once, by the last who shares them."""

from deft_jax.engine.pins import Hold, SharedPin


def test_the_last_share_lets_go():
    gone = []
    pin = SharedPin(gone.append, "kv")
    hold, other = Hold(pin), Hold(pin)
    pin.release()
    hold.release()
    hold.release()
    assert gone == []
    other.release()
    assert gone == ["kv"]


def test_a_hold_moves_to_the_new_pin_before_it_leaves_the_old_one():
    gone = []
    first, second = SharedPin(gone.append, 1), SharedPin(gone.append, 2)
    hold = Hold(first)
    first.release()
    hold.move(second)
    assert gone == [1]
    # Moving to where it is already keeps it.
    hold.move(second)
    second.release()
    assert gone == [1]
    shared = hold.share()
    hold.release()
    assert gone == [1] and shared is second
    second.release()
    assert gone == [1, 2]
    assert hold.share() is None


def test_a_hold_that_was_released_takes_no_share():
    gone = []
    first, second = SharedPin(gone.append, 1), SharedPin(gone.append, 2)
    hold = Hold(first)
    hold.release()
    hold.move(second)
    second.release()
    first.release()
    assert gone == [2, 1]


def test_nothing_to_let_go_of():
    gone = []
    SharedPin(gone.append, None).release()
    assert gone == []
