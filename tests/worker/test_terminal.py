"""What a terminal shows, a pipe gets, and a job's log carries."""

import io
import pickle

from slingstone.terminal import Standing, Terminal, marked, unmarked


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_moves_one_bar_in_place_and_keeps_lines_above_it():
    stream = Tty()
    terminal = Terminal(stream)
    terminal.say(Standing(200, 800, "50.0 images/s  ETA 0:12"))
    terminal.say("an evaluation")
    terminal.say(Standing(800, 800, "50.0 images/s  ETA 0:00"))
    shown = stream.getvalue()
    assert "200/800  50.0 images/s  ETA 0:12" in shown
    assert "an evaluation\n" in shown
    assert shown.count("\n") == 2, "the evaluation's line, and the one after the bar"
    assert all(len(part) <= 100 for part in shown.replace("\n", "\r").split("\r"))


def test_a_pipe_gets_a_line_of_progress_now_and_then_and_the_last_one():
    stream, times = io.StringIO(), iter(range(0, 40, 4))
    terminal = Terminal(stream, clock=lambda: next(times))
    for images in range(100, 900, 100):
        terminal.say(Standing(images, 800, "fast"))
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["100/800", "500/800", "800/800"]


def test_lines_come_through_a_jobs_log_as_they_are_and_rays_do_not():
    standing = Standing(200, 800, "fast")
    through = unmarked(marked(standing))
    assert isinstance(through, Standing)
    assert (through, through.done, through.total) == (standing, 200, 800)
    assert [unmarked(line) for line in marked("a table\n\nof lines").split("\n")] == ["a table", "", "of lines"]
    assert unmarked("2026-01-01 00:00:00 INFO worker.py:1 -- Connecting to Ray cluster") is None


def test_progress_travels_between_processes():
    back = pickle.loads(pickle.dumps(Standing(1, 2, "x")))
    assert isinstance(back, Standing)
    assert back.rest == "x"
