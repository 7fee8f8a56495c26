"""What a user reads while a run goes on."""

from slingstone.worker.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_shows_position_speed_rewards_divergence_oracle_and_time_left():
    said: list[str] = []
    progress = Progress(said.append, num_images=800, clock=Clock())
    progress.found("init", {"rewards": {"hps": 0.25}, "utility": 0.5, "caption_accuracy": 0.75, "diversity": 0.1})
    progress.step({"seconds/step": 4.0, "reward/hps": 0.3, "divergence/distance": 12.5}, images=200, num_images=200)
    assert said[0] == "init: hps 0.25  utility 0.5  caption_accuracy 0.75  diversity 0.1"
    bar = "[" + "#" * 6 + "-" * 18 + "]"
    expected = f"{bar} 200/800 images  50.0 images/s  hps 0.3  divergence 12.5  utility 0.500  accuracy 0.750  ETA 0:12"
    assert said[1] == expected


def test_lines_come_every_few_seconds_and_at_the_end():
    said: list[str] = []
    clock = Clock()
    progress = Progress(said.append, num_images=80, clock=clock)
    for step in range(8):
        progress.step({"seconds/step": 1.0}, images=10 * (step + 1), num_images=10)
        clock.now += 1
    shown = [line.split("] ")[1].split("/")[0] for line in said]
    assert shown == ["10", "50", "80"]


def test_durations_are_read_at_a_glance():
    assert [duration(seconds) for seconds in (0.0, 59.6, 61.0, 3600.0, 7325.0)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "2:02:05",
    ]
