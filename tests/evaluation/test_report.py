import io

from jaxllm.common.console import plain_console
from jaxllm.evaluation.metrics import Mean
from jaxllm.evaluation.report import show_comparison, show_tasks

TASKS = {
    "up": {"acc": Mean(0.9, 0.03, 50), "loss": Mean(1.0, None, 50)},
    "down": {"acc": Mean(0.2, 0.04, 50)},
    "new": {"acc": Mean(0.5, 0.1, 50)},
}
BEFORE = {
    "up": {"acc": Mean(0.5, 0.04, 50), "loss": Mean(3.0, None, 50)},
    "down": {"acc": Mean(0.6, 0.03, 50), "f1": Mean(0.6, 0.03, 50)},
    "old": {"acc": Mean(0.5, 0.1, 50)},
}


def shown(show, *args):
    """The cells of each line of a table, and other lines."""
    out = io.StringIO()
    show(*args, plain_console(file=out, width=160))
    lines = [line for line in out.getvalue().splitlines() if line.strip("┏┳━┓┡╇┩├┼─┤└┴┘")]
    return [[cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")] for line in lines]


def test_each_task_has_a_line_and_their_mean_the_last():
    assert shown(show_tasks, TASKS) == [
        ["task", "rows", "acc", "loss"],
        ["up", "50", "0.9000 ±0.0300", "1.0000"],
        ["down", "50", "0.2000 ±0.0400", ""],
        ["new", "50", "0.5000 ±0.1000", ""],
        ["mean over tasks", "3 tasks", "0.5333 ±0.0373", "1.0000"],
    ]
    assert len(shown(show_tasks, {"up": TASKS["up"]})) == 2


def test_groups_have_lines_and_no_part_in_the_mean(capsys):
    show_tasks(TASKS, groups={"all": {"acc": Mean(0.9, None, 150), "best": Mean(1.0, None, 150)}})
    *_, of_all, mean, _ = (line for line in capsys.readouterr().out.splitlines() if "──" not in line or "└" in line)
    assert [cell.strip() for cell in of_all.strip("│").split("│")] == ["all", "150", "0.9000", "", "1.0000"]
    assert [cell.strip() for cell in mean.strip("│").split("│")][:3] == ["mean over tasks", "3 tasks", "0.5333 ±0.0373"]


def test_names_are_printed_as_they_are(capsys):
    named = {"[/b] :fire:": {"acc": Mean(0.5, None, 2)}}
    show_tasks(named)
    show_comparison(named, {"[/c]": {"[/b] :fire:": {"acc": Mean(0.5, None, 2)}}})
    out = capsys.readouterr().out
    assert out.count("[/b] :fire:") == 2
    assert "[/c]" in out


def test_what_fell_most_comes_first_and_the_mean_is_over_what_both_have():
    assert shown(show_comparison, TASKS, {"before": BEFORE, "other": {"up": {"acc": Mean(0.1, None, 1)}}}) == [
        ["task", "metric", "before", "other", "this", "difference"],
        ["down", "acc", "0.6000 ±0.0300", "", "0.2000 ±0.0400", "-0.4000 ±0.0500"],
        ["up", "acc", "0.5000 ±0.0400", "0.1000", "0.9000 ±0.0300", "+0.4000 ±0.0500"],
        ["up", "loss", "3.0000", "", "1.0000", "-2.0000"],
        ["mean over tasks", "acc", "0.5500 ±0.0250", "0.1000", "0.5500 ±0.0250", "+0.0000 ±0.0354"],
        ["mean over tasks", "loss", "3.0000", "", "1.0000", "-2.0000"],
        ["not in both: new, old"],
    ]


def test_smaller_changes_are_left_to_the_files():
    many = {f"task {n}": {"acc": Mean(n / 100, 0.1, 50)} for n in range(60)}
    none = {task: {"acc": Mean(0.0, 0.1, 50)} for task in many}
    lines = shown(show_comparison, none, {"before": many})
    assert [line[0] for line in lines[1:4]] == ["task 59", "task 58", "task 57"]
    assert lines[-1] == ["20 smaller changes are not shown"]
