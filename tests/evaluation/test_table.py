"""Tables as people read them, in a terminal and in Markdown."""

from slingstone.evaluation.table import final_table, markdown_table


def test_the_final_table_lists_what_every_column_has():
    one = {
        "rewards": {"hps": 0.2},
        "utility": 0.5,
        "accuracy/one_object": 0.5,
        "diversity": 0.1,
        "seconds_per_image": 0.01,
        "network_evaluations": 1,
    }
    many = one | {"rewards": {"hps": 0.3}, "network_evaluations": 100.0}
    assert final_table({"init": one, "reference_50_steps": many}).splitlines() == [
        "                       init    reference 50 steps",
        "-------------------  ------  --------------------",
        "reward hps           0.2000                0.3000",
        "utility              0.5000                0.5000",
        "  of one object      0.5000                0.5000",
        "diversity            0.1000                0.1000",
        "seconds per image    0.0100                0.0100",
        "network evaluations       1                   100",
    ]


def test_a_markdown_table_keeps_cells_as_they_are_but_for_its_own_bars():
    rows = [["model", "score"], ["a|b", ".2270"], ["long name", "1.0 ± 0.1"]]
    assert markdown_table(rows).splitlines() == [
        "| model     | score     |",
        "|:----------|:----------|",
        "| a/b       | .2270     |",
        "| long name | 1.0 ± 0.1 |",
    ]
