"""What a user reads while a run goes on."""

from slingstone.worker.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def said_by(held_out: tuple[str, ...] = (), num_images: int = 800) -> tuple[list[str], Progress, Clock]:
    said, clock = list[str](), Clock()
    return said, Progress(said.append, num_images, held_out, clock), clock


def test_a_line_shows_position_speed_time_left_rewards_and_divergence():
    said, progress, clock = said_by()
    clock.now = 4.0
    progress.step({"seconds/step": 4.0, "reward/hps": 0.3, "divergence/distance": 12.5}, images=200, num_images=200)
    assert said == ["[###---------] 200/800  50/s  ETA 0:12  hps 0.3  divergence 12.5"]


def test_speed_and_time_left_are_those_of_the_last_minute():
    said, progress, clock = said_by(num_images=10_000)
    for step in range(40):  # a warm-up of 20 images/s, then rewards join: 5 images/s
        clock.now += 1 if step < 20 else 4
        progress.step({"seconds/step": 1.0}, images=20 * (step + 1), num_images=20)
    assert "  5/s  ETA 30:40" in said[-1]


def test_evaluations_are_rows_of_one_table_that_tells_held_out_rewards():
    said, progress, _ = said_by(held_out=("hps",))
    found = {
        "rewards": {"pickscore": -0.78312, "hps": 0.25},
        "utility": 0.5,
        "diversity": 0.1,
        "caption_accuracy": 0.75,
    }
    progress.found("initial", found)
    progress.found("800", found | {"utility": 12345.6})
    assert said == [
        "evaluations on held-out prompts; rewards in parentheses are not trained on",
        "images     pickscore   (hps)  utility  accuracy  diversity",
        "initial       -0.783  0.2500   0.5000    0.7500     0.1000",
        "800           -0.783  0.2500    12346    0.7500     0.1000",
    ]


def test_every_line_fits_a_hundred_columns():
    said, progress, clock = said_by(num_images=1_500_000)
    names = [f"a_reward_of_a_long_name_{number}" for number in range(8)]
    progress.found("reference 50", {"rewards": dict.fromkeys(names, -12345.678), "diversity": 1e-9})
    clock.now = 900.0
    progress.step({"seconds/step": 900.0} | {f"reward/{name}": 0.123456 for name in names}, 1_000_000, 126)
    assert max(map(len, said)) <= 100
    assert "ETA" in said[-1]


def test_lines_come_every_few_seconds_and_at_the_end():
    said, progress, clock = said_by(num_images=80)
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
