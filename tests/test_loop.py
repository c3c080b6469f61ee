"""The loop that trains, with a toy learner: batches, the log, and runs that are stopped at any step."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtta import checkpoint, run
from jaxtta.core import InputError, Learner
from jaxtta.runs import folder as run_folder
from jaxtta.runs import loop
from jaxtta.runs.folder import RunFolder

ITEMS, BATCH, EPOCHS = 5, 2, 4


class ToyState(NamedTuple):
    """A number that remembers the order of what it was shown, and the steps done."""

    value: Any
    step: Any


@functools.cache
def toy_learner():
    """Each step depends on its key, on its batch and on the state before."""

    def init(key, batch):
        return ToyState(jnp.zeros(()), jnp.zeros((), jnp.int32))

    def step(key, state, batch):
        value = 0.7 * state.value + jnp.mean(batch["number"]) + jax.random.uniform(key)
        return ToyState(value, state.step + 1), {"value": value, "loss": value**2}

    return Learner(*run.compiled_learner(Learner(init, step)))


def numbers(epoch, place, item):
    """What is drawn of an item."""
    return {"number": np.float32([item, np.random.default_rng([9, epoch, place]).random()])}


def train(out, *, resume=False, quiet=True, **changes):
    """A run of the toy learner; its state, its log and the rows it wrote."""
    written = []
    settings = {
        "epochs": EPOCHS,
        "steps": loop.steps_of(ITEMS, BATCH),
        "seed": 3,
        "label": "toy",
        "score": lambda state, epoch: {"score": float(state.value) + epoch},
        "write": lambda state, log: written.append(len(log)),
    }
    with RunFolder(out, resume=resume) as folder:
        folder.begin({}, [], grows=True)
        batches = loop.shuffled(numbers, ITEMS, BATCH, seed=[3])
        state, log = loop.fit(toy_learner(), batches, folder, quiet=quiet, **{**settings, **changes})
        folder.finish()
    return float(state.value), [{k: v for k, v in row.items() if k != "seconds"} for row in log], written


@pytest.fixture
def each_step(monkeypatch):
    """States are saved after each step."""
    monkeypatch.setattr(run_folder, "SAVE_SECONDS", -1.0)


def interrupted(patch, after):
    """Ctrl-C in the place of the save of that number."""
    save, count = checkpoint.save_state, itertools.count()

    def saved(path, state, told):
        if next(count) == after:
            raise KeyboardInterrupt
        save(path, state, told)

    patch.setattr(checkpoint, "save_state", saved)


@pytest.mark.parametrize("every, epochs", [(1, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_a_run_stopped_at_any_save_ends_the_same_to_the_bit(tmp_path, monkeypatch, each_step, every, epochs):
    how_long = {"every": every, "epochs": epochs}
    value, log, written = train(tmp_path / "whole", **how_long)
    assert [row["epoch"] for row in log] == {1: [1, 2], 2: [2, 3]}[every] and written == [*range(1, len(log) + 1)]
    saves = epochs * loop.steps_of(ITEMS, BATCH) + 1
    for after in range(saves):
        out = tmp_path / str(after)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupted(patch, after)
            train(out, **how_long)
        assert train(out, resume=True, **how_long)[:2] == (value, log)
        table, expected = ((path / loop.LOG).read_text().splitlines() for path in (out, tmp_path / "whole"))
        assert [line.rsplit(",", 1)[0] for line in table] == [line.rsplit(",", 1)[0] for line in expected]


def test_states_are_saved_when_it_is_time_and_at_the_end(tmp_path, monkeypatch):
    exported = []
    train(tmp_path / "one", export=lambda state, log: exported.append((int(state.step), len(log))))
    assert exported == [(12, 4)]
    monkeypatch.setattr(run_folder, "SAVE_SECONDS", -1.0)
    exported.clear()
    train(tmp_path / "all", export=lambda state, log: exported.append((int(state.step), len(log))))
    assert exported[:4] == [(1, 0), (2, 0), (3, 0), (4, 1)] and exported[-1] == (12, 4) and len(exported) == 13


def test_what_is_trained_is_not_trained_again(tmp_path):
    value, log, _ = train(tmp_path / "run")
    assert train(tmp_path / "run", resume=True)[:2] == (value, log)
    assert train(tmp_path / "run", resume=True)[2] == []
    longer = train(tmp_path / "run", resume=True, epochs=EPOCHS + 1)
    assert longer[1][:-1] == log and longer[2] == [5]


def test_a_row_holds_means_scores_and_what_comes_first(tmp_path):
    seen = []
    learner = toy_learner()

    def step(key, state, batch):
        state, info = learner.step(key, state, batch)
        seen.append({name: float(value) for name, value in info.items()})
        return state, info

    batches = loop.shuffled(numbers, ITEMS, BATCH, seed=[3])
    how_long = {"epochs": 2, "steps": 3, "seed": 3, "label": "toy", "quiet": True}
    state, log = loop.fit(learner._replace(step=step), batches, None, columns=("value", "nothing"), **how_long)
    assert list(log[0]) == ["epoch", "value", "loss", "seconds"] and len(seen) == 6
    for row, infos in zip(log, (seen[:3], seen[3:])):
        for name in ("value", "loss"):
            assert row[name] == pytest.approx(np.mean([info[name] for info in infos]))
    assert float(state.value) == seen[-1]["value"]


@pytest.mark.parametrize("where", ["folder", "none"])
def test_a_loss_that_is_not_finite_ends_the_run_in_words(tmp_path, where):
    learner = toy_learner()
    lost = learner._replace(step=lambda key, state, batch: (state, {"loss": jnp.nan}))
    how_long = {"epochs": 2, "steps": 3, "seed": 3, "label": "toy", "quiet": True}
    batches = loop.shuffled(numbers, ITEMS, BATCH, seed=[3])
    with RunFolder(tmp_path / "run") as folder:
        folder.begin({}, [])
        given, name = (folder, tmp_path / "run") if where == "folder" else (None, "toy")
        with pytest.raises(InputError, match=f"^{name}: the loss is not finite in epoch 1; .* lower `learning_rate`"):
            loop.fit(lost, batches, given, **how_long)


def test_batches_depend_on_seed_epoch_and_place_alone():
    def of(epoch, some, *, items=7, batch=2, seed=1):
        batches = loop.shuffled(lambda e, place, item: {"which": np.array([e, place, item])}, items, batch, seed=[seed])
        return np.concatenate([one["which"] for one in batches(epoch, some)])

    whole = of(5, range(4))
    np.testing.assert_array_equal(whole[:, 0], 5)
    np.testing.assert_array_equal(whole[:, 1], np.arange(8))
    assert sorted(whole[:7, 2]) == list(range(7)) and whole[7, 2] == whole[0, 2]  # filled up with the first
    np.testing.assert_array_equal(of(5, range(1, 3)), whole[2:6])
    np.testing.assert_array_equal(of(5, range(2), batch=4), whole)
    assert not np.array_equal(of(6, range(4))[:, 2], whole[:, 2])
    assert not np.array_equal(of(5, range(4), seed=2)[:, 2], whole[:, 2])
    some = of(5, range(2), items=np.array([3, 8, 20]))
    assert set(some[:, 2]) == {3, 8, 20} and loop.steps_of(np.array([3, 8, 20]), 2) == 2


def test_a_file_that_cannot_be_read_any_more_ends_the_batches():
    def draw(epoch, place, item):
        raise InputError("gone")

    with pytest.raises(InputError, match="gone"):
        list(loop.shuffled(draw, 3, 2, seed=[0])(0, range(2)))


def test_rows_are_shown_when_they_are_wanted(tmp_path, capsys):
    loop.show({"epoch": 3, "loss": 0.123456})
    assert capsys.readouterr().out == "epoch 3 loss 0.1235\n"
