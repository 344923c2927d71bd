import os
import sys
from functools import partial
from io import StringIO

import pytest

from jaxllm.common.console import plain_console
from jaxllm.config import UserError
from jaxllm.train import report
from jaxllm.train.report import Report, duration, progress_line

VALUES = {"loss": 3.41234, "bits_per_byte": 2.31, "tokens_per_second": 12345.6, "mfu": None, "skipped": 0}


def test_a_progress_line_leaves_out_what_is_not_known_and_counts_skipped_steps():
    assert progress_line(VALUES, 192) == "loss 3.4123  2.3100 bits/byte  12,346 tokens/s  3:12 left"
    full = progress_line({**VALUES, "mfu": 0.412, "skipped": 2}, 7)
    assert full == "loss 3.4123  2.3100 bits/byte  12,346 tokens/s  MFU 41.2%  2 skipped  0:07 left"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (754, "12:34"), (18060, "5:01:00"), (59.7, "1:00")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_elsewhere_than_on_a_terminal_every_line_is_printed_and_logged_as_it_is(tmp_path, capsys):
    with Report(tmp_path) as said:
        said.say("a [bold]sentence[/bold] of 'quotes' " + "that is long " * 20)
        with said.live(9):
            said.progress(3, VALUES, 10)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("a [bold]sentence[/bold] of 'quotes' that is long")
    assert printed[1] == f"step 3/9  {progress_line(VALUES, 10)}"
    assert [line[21:] for line in (tmp_path / "log.txt").read_text().splitlines()] == printed


def test_on_a_terminal_progress_is_one_live_line_and_the_log_has_them_all(tmp_path, monkeypatch):
    screen = StringIO()
    on_screen = partial(plain_console, force_terminal=True, width=120)
    monkeypatch.setattr(report, "plain_console", lambda file: on_screen(file=screen))
    with Report(tmp_path) as said, said.live(9):
        for step in (3, 6):
            said.progress(step, VALUES, 10)
    assert "step 3/9" not in screen.getvalue()
    assert "6/9" in screen.getvalue()
    assert (tmp_path / "log.txt").read_text().count(progress_line(VALUES, 10)) == 2


def test_what_nobody_reads_any_more_is_still_logged(tmp_path, monkeypatch):
    read, write = os.pipe()
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with Report(tmp_path) as said:
            said.say("one")
            assert not said.unread
            os.close(read)
            said.say("two")
            assert said.unread
            said.say("three")
    assert [line[21:] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["one", "two", "three"]


def test_a_log_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with Report(tmp_path) as said, pytest.raises(UserError, match=r"run folder .*No space left on device"):
        said.say("a sentence")
