import matplotlib.image
import pytest

from jaxllm.train.plot import plot_loss, plot_tasks

TRAINING = [{"step": step, "bits_per_byte": 5.0 / step} for step in range(1, 9)]
HELD_OUT = [{"step": 4, "held_out_bits_per_byte": 2.0}, {"step": 8, "held_out_bits_per_byte": 1.0}]
FINAL = [{"step": 8, "final_bits_per_byte": 1.1}]


@pytest.mark.parametrize("lines", [[], TRAINING, TRAINING + HELD_OUT + FINAL], ids=["none", "training", "all"])
def test_a_picture_is_drawn_of_whatever_lines_there_are(tmp_path, lines):
    plot_loss(lines, tmp_path / "loss.png", "a $_$")
    assert matplotlib.image.imread(tmp_path / "loss.png").shape[:2] == (675, 1200)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_names_of_tasks_are_drawn_as_they_are(tmp_path):
    lines = [{"task": name, "before": 2.0, "after": 3.0, "difference": 1.0} for name in ("$_$", "{\\x}", "中文")]
    plot_tasks(lines, tmp_path / "tasks.png", "a $_$")
    assert matplotlib.image.imread(tmp_path / "tasks.png").shape[:2] == (900, 900)


def test_a_value_that_was_not_finite_leaves_a_gap_and_no_error(tmp_path):
    plot_loss([*TRAINING, {"step": 9, "bits_per_byte": None}], tmp_path / "loss.png", "run")
    assert (tmp_path / "loss.png").exists()
