"""Progress in a log file: a line when it is time and one at the end, with how far and how long still."""

import sys

import pytest

from tljax.run import progress


class Clock:
    """A monotonic clock that a test sets."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_lines_in_a_log_file(clock, capsys):
    with progress.bar("training", 100) as bar:
        bar.update(10)  # at once: no line
        clock.now += 5
        bar.update(10)
        assert capsys.readouterr().err == ""
        clock.now += 26  # 31 s since the last line
        bar.show("loss 0.500")
        bar.update(11)
        assert capsys.readouterr().err == "training: 31 of 100 examples, 1/s, 69 s left, loss 0.500\n"
        clock.now += 30  # exactly: not yet
        bar.update(1)
        assert capsys.readouterr().err == ""
        bar.update(68)
        assert capsys.readouterr().err.startswith("training: 100 of 100 examples, 2/s, 0 s left")


def test_a_resumed_run_counts_its_own_examples_for_the_rate(clock, capsys):
    with progress.bar("training", 1_000, 400) as bar:
        clock.now += 60
        bar.update(300)
    assert capsys.readouterr().err == "training: 700 of 1,000 examples, 5/s, 60 s left\n"


def test_no_time_at_all_is_no_division_by_zero(clock, capsys):
    with progress.bar("evaluating", 3) as bar:
        bar.update(3)
    assert capsys.readouterr().err.startswith("evaluating: 3 of 3 examples")


def test_a_bar_on_a_terminal_and_no_lines(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.bar("training", 4) as bar:
        bar.show("loss 0.100")
        bar.update(4)
    shown = capsys.readouterr().err
    assert "training 100%" in shown
    assert "loss 0.100" in shown
    assert "examples," not in shown


def test_the_bar_is_closed_after_an_error(monkeypatch):
    closed = []

    def fail():
        with progress.bar("training", 4) as bar:
            monkeypatch.setattr(bar.bar, "close", lambda: closed.append(True))
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        fail()
    assert closed == [True]
