"""Networks without batch norm: what refuses does so before anything is read, and the table says which methods do."""

from pathlib import Path

import numpy as np
import pytest
from folders import SIZE, dataset, source_model

import jaxtta
from experiments.norms import table
from jaxtta import checkpoint
from jaxtta.core import InputError, Task
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.methods import METHODS

README = Path(__file__).resolve().parents[1] / "experiments" / "README.md"
REFUSING = (
    *("batch_statistics", "alpha_bn", "progressive_bn", "medbn", "medbn_tent", "intent", "dua", "vptta", "diga"),
    *("domain_adaptor", "sictta"),
)


def test_the_table_beside_the_experiments_is_the_one_that_is_made():
    made = table()
    rows = {line.split(" | ")[0].strip("|` "): line for line in made.splitlines()[2:]}
    assert [*rows] == [*METHODS]
    assert [name for name, line in rows.items() if line.split(" | ")[3] == "refuses"] == [*REFUSING]
    readme = README.read_text()
    assert made in readme


@pytest.mark.parametrize("name", ["alpha_bn", "vptta", *(pytest.param(n, marks=pytest.mark.slow) for n in REFUSING)])
def test_a_method_that_cannot_work_refuses_before_anything_is_read(tmp_path, name):
    source, data = source_model(tmp_path / "source", norm="instance"), dataset(tmp_path / "data", 2)
    for path in (data / "images").iterdir():
        path.write_bytes(b"no image")  # who reads it would say so
    out = tmp_path / "result"
    for command, options in ((jaxtta.adapt, {"images": data / "images", "quiet": True}), (jaxtta.export, {})):
        with pytest.raises(InputError, match=f"^{name} .*instance norm") as caught:
            command(source=source, out=out, method=name, **options)
        assert "\n" not in str(caught.value) and not out.exists()
    with pytest.raises(InputError, match=f"^{name} .*instance norm"):
        jaxtta.benchmark(
            sources={"a": source}, images=data / "images", masks=data / "masks", out=out, methods=[name], quiet=True
        )
    assert not out.exists()


def test_what_has_no_norm_layers_to_look_at_is_not_calibrated_and_nothing_is_read(tmp_path):
    def network(params, images):
        return images @ params["matrix"]

    model, source = jaxtta.from_function(network, {"matrix": np.ones((3, 2), np.float32)})
    checkpoint.save(tmp_path / "source", model, source, Task(2), Preprocessing(SIZE), provenance={})
    loaded = checkpoint.load(tmp_path / "source", model=model)
    data = dataset(tmp_path / "data", 2)
    for path in (data / "images").iterdir():
        path.write_bytes(b"no image")
    told = {"images": data / "images", "masks": data / "masks", "out": tmp_path / "out", "quiet": True}
    with pytest.raises(InputError, match="network has no norm layers that can be looked at") as caught:
        jaxtta.calibrate(source=loaded, **told)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
