"""A signal is noted, not obeyed at once; afterwards the handlers are what they were."""

import os
import signal

import pytest

from tljax.run.signals import watched

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_one_signal_asks_to_stop(number):
    with watched() as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert stopping()
        assert stopping()  # it stays so


def test_a_second_sigterm_changes_nothing():
    with watched() as stopping:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()


def test_a_second_sigint_ends_at_once():
    with watched() as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_then_sigint_is_still_one_request():
    with watched() as stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]

    def fail():
        with watched():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        fail()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_each_run_starts_unasked():
    with watched():
        os.kill(os.getpid(), signal.SIGTERM)
    with watched() as stopping:
        assert not stopping()
