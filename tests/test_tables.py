"""The tables of a benchmark: what is bold, what is left out, how numbers read, and what LaTeX makes of names."""

import csv
import io
import math
import re

import pytest

from jaxtta.benchmarks import tables
from jaxtta.benchmarks.scores import summary

NAN = math.nan


def scored(method, *, source="A", protocol="reset", domains=None, **other):
    """A summary of scores in which one round and one replicate left two columns undefined."""
    names = {"source": source, "protocol": protocol, "method": method}
    means = {"dice": 70.0, "dice_low": 69.0, "dice_high": 71.0, "dice_pooled": 72.0, "hd95": 5.0, "assd": 1.0}
    tail = {"ece": 2.0, "harm": 0.0, "worst_decile": 40.0, "spread": NAN, "degradation": NAN}
    paired = {"difference": NAN, "p": NAN}
    return {**names, "domains": domains or {"north": 60.0, "south": 80.0}, **means, **tail, **paired, **other}


def cost(method, *, source="A", **other):
    values = {"seconds": 0.05, "compile_seconds": 4.0, "memory": 3e8, "forward": 1.0, "backward": 0.0}
    return {"source": source, "method": method, **values, "parameters": 0.0, "state": 0.0, **other}


def column(table, name):
    """The cells of a column, and those of them that are best."""
    place = table.header.index(name)
    return [row[place] for row in table.rows], [own[place] for own in table.best]


def test_the_columns_of_scores_and_those_left_out():
    rows = [scored("source"), scored("tent", difference=0.5, p=0.01)]
    (table,) = tables.tables(rows)
    assert table.title == "Source A, protocol reset"
    means = ["mean [95 %]", "pooled", "HD95", "ASSD", "ECE", "harm", "worst decile"]
    assert table.header == ["method", "north", "south", *means, "difference", "p"]
    assert [row[0] for row in table.rows] == ["source", "tent"]
    assert column(table, "mean [95 %]")[0] == ["70.00 [69.00, 71.00]"] * 2
    assert column(table, "difference")[0] == ["–", "+0.50"] and column(table, "p")[0] == ["–", "0.010"]
    every = [scored("source", spread=1.0, degradation=-1.0)]
    assert {"spread", "degradation"} < set(tables.tables(every)[0].header)
    assert "difference" not in tables.tables(every)[0].header


def test_domains_are_those_of_the_source_and_protocol():
    rows = [scored("source", domains={"north": 1.0}), scored("source", source="B", domains={"south": 2.0})]
    first, second = tables.tables(rows)
    assert first.header[1] == "north" and second.header[1] == "south"
    assert "south" not in first.header and "north" not in second.header
    # A method that was not scored in a domain has a dash there.
    (table,) = tables.tables([scored("source"), scored("tent", domains={"north": 3.0})])
    assert column(table, "south") == (["80.00", "–"], [False, False])


@pytest.mark.parametrize(
    ("name", "key", "values", "best"),
    [
        ("mean [95 %]", "dice", (60.0, 70.0, 65.0), 1),
        ("pooled", "dice_pooled", (60.0, 70.0, 65.0), 1),
        ("HD95", "hd95", (5.0, 7.0, 3.0), 2),
        ("ASSD", "assd", (1.0, 7.0, 3.0), 0),
        ("ECE", "ece", (5.0, 7.0, 3.0), 2),
        ("harm", "harm", (0.0, 30.0, 20.0), 2),  # no adaptation harms nothing by definition
        ("worst decile", "worst_decile", (60.0, 10.0, 61.0), 2),
        ("spread", "spread", (0.0, 0.5, 0.7), 1),
        ("degradation", "degradation", (-3.0, -1.0, -7.0), 1),
        ("difference", "difference", (NAN, -1.0, 2.0), 2),
    ],
)
def test_the_best_of_a_column(name, key, values, best):
    rows = [scored(method, **{key: value}) for method, value in zip(("source", "tent", "sar"), values)]
    assert column(tables.tables(rows)[0], name)[1] == [i == best for i in range(3)]


def test_what_reads_the_same_is_as_good():
    rows = [scored("source", dice=70.0), scored("tent", dice=71.234), scored("sar", dice=71.2301)]
    (table,) = tables.tables(rows)
    assert column(table, "mean [95 %]")[1] == [False, True, True]
    assert not any(column(table, "pooled")[1]), "all are equal"
    assert not any(column(tables.tables([scored("a", p=0.1), scored("b", p=0.2)])[0], "p")[1]), "p has no best"
    assert not any(any(own) for own in tables.tables([scored("source")])[0].best), "nothing to be better than"


def test_how_numbers_read():
    rows = [scored("a", difference=-0.001, p=0.0004), scored("b", difference=-1.5, p=1.0, harm=33.333)]
    (table,) = tables.tables(rows)
    assert column(table, "difference")[0] == ["+0.00", "-1.50"]
    assert column(table, "p")[0] == ["<0.001", "1.000"] and column(table, "harm")[0] == ["0.0", "33.3"]


def test_costs_in_readable_units():
    rows = [
        cost("source", seconds=0.01234, memory=1234567890.0),
        cost("tent", seconds=0.999999, compile_seconds=12.345, backward=1.0, parameters=17026.0, state=123456.0),
        cost("cotta", memory=NAN, forward=34.0, parameters=24.4e6, state=97.6e6),
        cost("source", source="B"),
    ]
    first, second = tables.tables([], costs=rows)
    assert (first.title, second.title) == ("Costs, source A", "Costs, source B")
    assert column(first, "s/image") == (["0.0123", "1", "0.05"], [False, False, True])
    assert column(first, "compile, s") == (["4", "12.3", "4"], [False, False, True])
    assert column(first, "memory, MB") == (["1230", "300", "–"], [False, False, False])
    assert column(first, "backward") == (["0", "1", "0"], [False, False, True])
    assert column(first, "parameters, thousands") == (["0", "17", "24400"], [False] * 3)
    assert column(first, "state, MB") == (["0", "0.123", "97.6"], [False, True, False])
    assert "memory, MB" not in tables.tables([], costs=[cost("source", memory=NAN)])[0].header


def test_markdown():
    rows = [scored("source"), scored("tent|x", dice=75.0), scored("tent", protocol="mixed")]
    text = tables.markdown(rows, costs=[cost("source"), cost("tent")])
    assert re.findall("^## (.*)$", text, re.MULTILINE) == [
        "Source A, protocol reset",
        "Source A, protocol mixed",
        "Costs, source A",
    ]
    assert "| **75.00 [69.00, 71.00]** |" in text and r"| tent\|x |" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.splitlines()
        assert len({len(line) for line in lines}) == 1, "columns are aligned as text"
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert re.fullmatch(r"\|(-+:\|)+", lines[1])
    notes = [line for line in text.splitlines() if line.startswith("- ")]
    shown = {name for table in tables.tables(rows, costs=[cost("source")]) for name in table.header}
    there = [note for part in (tables.SCORE_NOTES, tables.COST_NOTES) for name, note in part.items() if name in shown]
    assert [note[2:-1] for note in notes] == there and text.endswith(".\n")
    assert "Wilcoxon" not in tables.markdown([], costs=[cost("source")])


def test_latex_names_are_written_as_themselves():
    assert tables.escaped("batch_statistics") == r"batch\_statistics"
    assert tables.escaped(r"50% & #1 {a}~^\$") == (
        r"50\% \& \#1 \{a\}\textasciitilde{}\textasciicircum{}\textbackslash{}\$"
    )
    # After the end of a line a bracket would be read as a distance, a star as another kind of end.
    assert tables.escaped("[x] *y <z> |") == r"{[}x{]} {*}y \textless{}z\textgreater{} \textbar{}"


def test_latex_is_whole():
    rows = [
        scored("source", source="my_centre"),
        scored("tent:learning_rate=1e-3", source="my_centre", domains={"north_1": 60.0}, difference=-1.2, p=0.0001),
        scored("[odd] & {50%} #1 ~^\\$", source="my_centre", dice=75.0, difference=0.5, p=0.5),
        scored("source", protocol="rounds"),
    ]
    text = tables.latex(rows, costs=[cost("source"), cost("tent")])
    assert text.startswith("% needs \\usepackage{booktabs}\n")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    begun, ended = re.findall(r"\\begin{(\w+)}", body), re.findall(r"\\end{(\w+)}", body)
    assert sorted(begun) == sorted(ended) and begun == ["table", "tabular"] * 3
    plain = re.sub(r"\\[\\&%$#_{}]", "", body)
    assert plain.count("{") == plain.count("}") and not re.search(r"[_#^~%]", plain)
    assert all(body.count(rf"\{rule}rule") == 3 for rule in ("top", "mid", "bottom"))
    for block in re.findall(r"\\begin{tabular}{(lr*)}(.*?)\\end{tabular}", body, re.DOTALL):
        lines = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(block[0]) - 1}
    assert r"\caption{Source my\_centre, protocol reset}" in body
    assert r"\textbf{75.00 [69.00, 71.00]}" in body
    assert r"$-$1.20 & $<$0.001 \\" in body and "–" not in body and r"-- \\" in body
    assert r"tent:learning\_rate=1e-3 &" in body and r"{[}odd{]} \& \{50\%\} \#1" in body


def test_comma_separated_scores_and_costs():
    rows = [
        scored("source", domains={"north": 60.123456789012}),
        scored("tent, fast", source="B", domains={"south": 80.0}),
    ]
    text = tables.comma_separated(rows)
    first, second = csv.DictReader(io.StringIO(text))
    assert list(first)[:6] == ["source", "protocol", "method", "domain_north", "domain_south", "dice"]
    assert first["domain_north"] == "60.12345679" and first["domain_south"] == "nan" == second["domain_north"]
    assert second["method"] == "tent, fast" and float(second["dice_low"]) == 69 and first["p"] == "nan"
    costs = [cost("source"), cost("tent", memory=1234567890.0)]
    back = list(csv.DictReader(io.StringIO(tables.comma_separated(costs))))
    assert list(back[0]) == list(costs[0]) and back[1]["memory"] == "1234567890"


def test_tables_of_what_the_scores_are():
    classes = {"dice_organ": 50.0, "hd95_organ": 3.0, "assd_organ": 1.0, "ece": 4.0}
    visit = {"source": "A", "protocol": "rounds", "order": 0.0, "seed": 0.0, "domain": "north", "name": "a", **classes}
    rows = [
        {**visit, "method": method, "round": float(turn), "dice_organ": 50.0 + gain * turn}
        for method, gain in (("source", 0), ("tent", 2))
        for turn in (1, 2)
    ]
    made = summary(rows, ["organ"])
    (table,) = tables.tables(made)
    assert column(table, "degradation") == (["+0.00", "+2.00"], [False, True])
    assert column(table, "difference")[0] == ["–", "+3.00"] and "spread" not in table.header
    for text in (tables.markdown(made), tables.latex(made), tables.comma_separated(made)):
        assert "tent" in text and text.endswith("\n")
