"""`jaxtta benchmark` as a user runs it: what is written, that it is the same again, and runs that are stopped."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from folders import dataset, record, refused, source_model, succeeded, table

from jaxtta import stats
from jaxtta.benchmarks import cells
from jaxtta.benchmarks.protocols import PROTOCOLS
from jaxtta.core import Method, Output, bind
from jaxtta.methods import METHODS
from jaxtta.plans import Benchmark
from jaxtta.workflows.benchmark import benchmark

pytest_plugins = ("command_line",)
TENT = "tent:learning_rate=0.05"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Checkpoints and data that no test changes, and a file."""
    root = tmp_path_factory.mktemp("benchmark")
    source_model(root / "plain")
    source_model(root / "other", seed=7)
    source_model(root / "instance", norm="instance")
    source_model(root / "exclusive", activation="softmax")
    for number, name in enumerate(("north", "south")):
        dataset(root / name, 3 - number, seed=50 * number)
    (root / "benchmark.toml").write_text(
        f"""
        images = ["north/images", "south/images"]
        masks = ["north/masks", "south/masks"]
        methods = ["batch_statistics", "{TENT}"]
        orders = [["north", "south"], ["south", "north"]]
        seeds = [0, 1]
        [sources]
        plain = "plain"
        [protocols.reset]
        [protocols.continual]
        [protocols.twice]
        reset = "never"
        rounds = 2
        """
    )
    return root


@pytest.fixture(scope="module")
def whole(place):
    """Where the benchmark of the file is, once it has been run."""
    return place / "whole"


@pytest.fixture
def ran(command, place, whole):
    if not whole.exists():
        succeeded(command("benchmark", place / "benchmark.toml", "--out", whole))
    return whole


def test_a_benchmark_has_a_row_for_each_image_of_each_cell(ran):
    rows = table(ran, "results.csv")
    # reset has one order, the others two; two seeds; three methods; five images, twice in `twice`
    assert len(rows) == 3 * 2 * (5 + 2 * 5 + 2 * 10)
    assert [*rows[0]][:9] == ["source", "protocol", "order", "seed", "method", "round", "place", "domain", "name"]
    wanted = {f"{m}_{c}" for m in ("dice", "asd", "assd", "hd95") for c in ("disc", "cup")}
    assert {*rows[0]} >= {"dice", "ece", "skipped", *wanted} and "seconds" not in rows[0]
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["source", "batch_statistics", TENT]
    twice = [r for r in rows if (r["protocol"], r["order"], r["seed"], r["method"]) == ("twice", "1", "0", "source")]
    assert [r["domain"] for r in twice] == (["south"] * 2 + ["north"] * 3) * 2
    assert [r["round"] for r in twice] == ["1"] * 5 + ["2"] * 5
    assert [r["place"] for r in twice] == [str(n) for n in range(1, 11)]


def test_source_says_the_same_everywhere_and_adaptation_depends_on_what_came_before(ran):
    rows = table(ran, "results.csv")
    said = {}
    for row in rows:
        said.setdefault((row["method"], row["domain"], row["name"]), set()).add(row["dice"])
    for (method, *_), values in said.items():
        assert len(values) == 1 or method == TENT
    assert any(len(values) > 1 for (method, *_), values in said.items() if method == TENT)


def test_reset_is_what_adapt_does(command, place, ran, tmp_path):
    data = [x for kind in ("images", "masks") for x in (f"--{kind}", place / "north" / kind, place / "south" / kind)]
    options = ("--method", "tent", "--set", "learning_rate=0.05", "--out", tmp_path / "out")
    succeeded(command("adapt", "--source", place / "plain", *data, *options))
    adapted = {(r["domain"], r["name"]): r for r in table(tmp_path / "out")}
    rows = [r for r in table(ran, "results.csv") if (r["protocol"], r["seed"], r["method"]) == ("reset", "0", TENT)]
    assert len(rows) == 5
    for row in rows:
        own = adapted[row["domain"], row["name"]]
        assert {k: v for k, v in row.items() if k in own} == {k: own[k] for k in own if k in row}


def test_costs_and_the_summary_and_what_is_to_be_looked_at(ran):
    costs = {row["method"]: row for row in table(ran, "costs.csv")}
    assert list(costs) == ["source", "batch_statistics", TENT]
    assert (costs["source"]["forward"], costs["source"]["backward"], costs["source"]["parameters"]) == ("1", "0", "0")
    assert (costs[TENT]["forward"], costs[TENT]["backward"]) == ("2", "1")
    assert int(costs[TENT]["state"]) >= 3 * 4 * int(costs[TENT]["parameters"]) > 0  # Adam keeps two values of each
    assert all(float(row["seconds"]) > 0 and float(row["memory"]) > 0 for row in costs.values())
    said = record(ran)
    assert said["status"] == "finished" and said["orders"] == [["north", "south"], ["south", "north"]]
    assert [s["method"] for s in said["summary"]] == ["source", "batch_statistics", TENT] * 3
    twice = {s["method"]: s for s in said["summary"] if s["protocol"] == "twice"}
    assert twice["source"]["degradation"] == 0 and twice[TENT]["degradation"] != 0
    for name in ("tables/scores.csv", "tables/costs.csv", "tables/tables.md", "tables/tables.tex", "report.html"):
        assert (ran / name).stat().st_size > 100
    assert len(list((ran / "figures").rglob("*.png"))) >= 3
    assert list((ran / "gallery").rglob("*.jpg"))
    assert "data:image/" in (ran / "report.html").read_text()


@pytest.mark.slow
def test_the_same_again_gives_the_same_bits(command, place, ran, tmp_path):
    succeeded(command("benchmark", place / "benchmark.toml", "--out", tmp_path / "again"))
    assert (tmp_path / "again" / "results.csv").read_bytes() == (ran / "results.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "after", [pytest.param(after, marks=() if after == 33 else pytest.mark.slow) for after in (1, 8, 33, 70)]
)
def test_a_stopped_benchmark_loses_the_cell_in_hand_and_goes_on_to_the_same_file(
    command, place, ran, tmp_path, monkeypatch, after
):
    out, calls, scores = tmp_path / "out", [], cells.writing.scores

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt
        return scores(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cells.writing, "scores", stopping)
        assert command("benchmark", place / "benchmark.toml", "--out", out).status == 130
    finished = sorted((out / "cells").rglob("*.csv"))
    assert record(out)["status"] == "running" and not (out / "results.csv").exists()
    calls.clear()
    monkeypatch.setattr(cells.writing, "scores", lambda *arguments: calls.append(1) or scores(*arguments))
    refused(command("benchmark", place / "benchmark.toml", "--out", out), "--resume")
    succeeded(command("benchmark", place / "benchmark.toml", "--out", out, "--resume"))
    kept = sum(len(table(path.parent, path.name)) for path in finished)
    assert len(calls) == len(table(out, "results.csv")) - kept
    assert (out / "results.csv").read_bytes() == (ran / "results.csv").read_bytes()


@pytest.mark.slow
def test_methods_and_seeds_can_be_added_to_a_finished_benchmark(command, place, ran, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(ran, out)
    before = (out / "cells" / "plain" / "reset" / "order0_seed0" / "source.csv").stat().st_mtime_ns
    more = ("--methods", "batch_statistics", "alpha_bn", "--seeds", "0,1,2", "--resume")
    succeeded(command("benchmark", place / "benchmark.toml", "--out", out, *more))
    rows = table(out, "results.csv")
    assert {row["method"] for row in rows} == {"source", "batch_statistics", "alpha_bn"}
    assert {row["seed"] for row in rows} == {"0", "1", "2"}
    assert (out / "cells" / "plain" / "reset" / "order0_seed0" / "source.csv").stat().st_mtime_ns == before
    refused(command("benchmark", place / "benchmark.toml", "--out", out, "--resume", "--orders", 1), "orders")


@pytest.mark.slow
def test_streams_side_by_side_give_the_same_scores(command, place, ran, tmp_path):
    flags = ("--protocols", "reset", "episodic", "--seeds", "0", "--methods", TENT, "--streams", 4, "--devices", 2)
    succeeded(command("benchmark", place / "benchmark.toml", "--out", tmp_path / "out", *flags))
    rows = [r for r in table(tmp_path / "out", "results.csv") if r["protocol"] == "reset"]
    alone = {(r["method"], r["domain"], r["name"]): r for r in table(ran, "results.csv")
             if (r["protocol"], r["seed"]) == ("reset", "0")}  # fmt: skip
    assert len(rows) == 2 * 5
    for row in rows:
        own = alone[row["method"], row["domain"], row["name"]]
        np.testing.assert_allclose(float(row["dice"]), float(own["dice"]), atol=0.5)


@pytest.mark.slow
def test_several_sources_and_methods_that_refuse_some(command, place, tmp_path):
    data = [x for kind in ("images", "masks") for x in (f"--{kind}", place / "north" / kind)]
    call = ["benchmark", *data, "--out", tmp_path / "out"]
    sources = ("--sources", place / "plain", f"mine={place / 'other'}", place / "instance")
    said = refused(command(*call, *sources, "--methods", "alpha_bn"), "alpha_bn", "instance norm")
    assert not (tmp_path / "out").exists() and said.err.count("alpha_bn") >= 1
    registry = {name: METHODS[name] for name in ("source", "alpha_bn", "tent")}
    plan = Benchmark(
        sources={"plain": place / "plain", "mine": place / "other", "instance": place / "instance"},
        images=place / "north" / "images",
        out=tmp_path / "out",
        masks=place / "north" / "masks",
        quiet=True,
    )
    said = benchmark(plan, registry=registry)
    assert [(r["source"], r["method"]) for r in said["refused"]] == [("instance", "alpha_bn")]
    assert {(r["source"], r["method"]) for r in table(tmp_path / "out", "results.csv")} == {
        (s, m) for s in ("plain", "mine", "instance") for m in registry if (s, m) != ("instance", "alpha_bn")
    }
    costs = table(tmp_path / "out", "costs.csv")  # two sources of one architecture share a program
    assert len({r["compile_seconds"] for r in costs if r["method"] == "tent"}) == 2 < len({r["source"] for r in costs})


def brightest(model, task, *, share: float = 0.5):
    """A method of one's own: logits moved by the image's brightness, which the stream remembers."""
    policy = stats.image()

    def init(source, images):
        return {"moved": jnp.zeros((), images.dtype)}

    def predict(source, state, images):
        return bind(model, source, policy)(source.params)(images)["segmentation"] + state["moved"]

    def step(key, source, state, images):
        state = {"moved": (1 - share) * state["moved"] + share * jnp.mean(images)}
        return state, Output(predict(source, state, images), {"brightness": state["moved"]})

    return Method(init, step, predict, lambda state: state["moved"])


@pytest.mark.slow
def test_a_method_of_ones_own_is_benchmarked_without_touching_the_package(as_a_user, place, tmp_path):
    names = ("north", "south")
    plan = Benchmark(
        sources={"plain": place / "plain"},
        images=tuple(place / name / "images" for name in names),
        masks=tuple(place / name / "masks" for name in names),
        methods=("brightest", "brightest:share=0.9"),
        protocols={"reset": PROTOCOLS["reset"], "episodic": PROTOCOLS["episodic"]},
        out=tmp_path / "out",
        quiet=True,
    )
    said = benchmark(plan, registry={**METHODS, "brightest": brightest})
    assert said["methods"] == ["source", "brightest", "brightest:share=0.9"]
    rows = table(tmp_path / "out", "results.csv")
    assert len(rows) == 3 * 2 * 5
    own = {(r["protocol"], r["method"]): [float(q["dice"]) for q in rows if q["protocol"] == r["protocol"]
           and q["method"] == r["method"]] for r in rows}  # fmt: skip
    assert own["reset", "brightest"] != own["reset", "source"]
    assert own["reset", "brightest"] != own["episodic", "brightest"]
    costs = {row["method"]: row for row in table(tmp_path / "out", "costs.csv")}
    assert (costs["brightest"]["forward"], costs["brightest"]["parameters"]) == ("1", "1")


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--methods", "tnt"), ("tnt", "tent")),
        (("--methods", "tent:rate=1"), ("tent:rate=1", "learning_rate")),
        (("--methods", "tent:learning_rate"), ("key=value",)),
        (("--against", "grata"), ("grata", "not among", "batch_statistics")),
        (("--protocols", "forever"), ("forever", "continual", "twice")),
        (("--orders", "north,west"), ("north,west", "north,south")),
        (("--sources", "a/best", "a/last"), ("called a", "LABEL=PATH")),
        (("--masks",), ()),
    ],
)
def test_bad_flags_are_one_line_and_nothing_is_written(command, place, tmp_path, flags, words):
    said = command("benchmark", place / "benchmark.toml", *flags, "--out", tmp_path / "out")
    if words:
        refused(said, *words, out=tmp_path / "out")
    else:
        assert said.status == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("images = [", ("not a TOML file",)),
        ("pictures = ['a']", ("pictures", "images")),
        ("images = 'a'", ("images", "paths")),
        ("seeds = ['one']", ("seeds", "whole numbers")),
        ("[protocols.mine]\nreset = 'later'", ("later", "domain, image, never")),
        ("[protocols.mine]\nturns = 3", ("turns", "rounds")),
        ("images = ['north/images']", ("needs sources", "--sources")),
        ("images = ['north/images']\nsources = {plain = 'plain'}", ("has no mask", "--masks")),
        (
            "images = ['north/images']\nmasks = ['north/masks']\nsources = {a = 'plain', b = 'exclusive'}",
            ("do not segment the same", "sigmoid", "softmax"),
        ),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_written(command, place, tmp_path, text, words):
    file = place / f"bad{abs(hash(text))}.toml"
    file.write_text(text)
    refused(command("benchmark", file, "--out", tmp_path / "out"), *words, out=tmp_path / "out")


def test_a_bad_image_stops_or_is_left_out(command, place, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(place / "north", data)
    (data / "images" / "1.png").write_bytes(b"no image")
    call = ["benchmark", "--sources", place / "plain", "--images", data / "images", "--masks", data / "masks"]
    call += ["--methods", "batch_statistics", "--out", tmp_path / "out"]
    refused(command(*call), "1.png", "--skip-bad", out=tmp_path / "out")
    said = succeeded(command(*call, "--skip-bad"))
    assert "1 of 3 files could not be read" in said.out
    assert {row["name"] for row in table(tmp_path / "out", "results.csv")} == {"0", "2"}
