"""The registry: every method by its name. The command line, the benchmark and the conformance tests iterate over it."""

from collections import UserDict
from collections.abc import Callable
from importlib import import_module

from jaxtta.core import Method


class Registry(UserDict):
    """Factories `(model, task, *, keywords) -> Method` by their names, each imported when it is first asked for."""

    def __getitem__(self, name: str) -> Callable[..., Method]:
        place = self.data[name]
        if isinstance(place, str):
            module, _, function = place.partition(":")
            self.data[name] = getattr(import_module(f"{__name__}.{module}"), function)
        return self.data[name]


METHODS = Registry(
    {
        "source": "source:source",
        "batch_statistics": "batch_statistics:batch_statistics",
        "alpha_bn": "alpha_batch_norm:alpha_bn",
        "progressive_bn": "progressive_batch_norm:progressive_bn",
        "medbn": "medbn:medbn",
        "medbn_tent": "medbn:medbn_tent",
        "intent": "intent:intent",
        "dua": "dua:dua",
        "tent": "tent:tent",
        "eata": "eata:eata",
        "sar": "sar:sar",
        "memo": "memo:memo",
        "vptta": "vptta:vptta",
        "diga": "diga:diga",
        "domain_adaptor": "domain_adaptor:domain_adaptor",
        "sictta": "sictta:sictta",
        "dltta": "dltta:dltta",
        "cotta": "cotta:cotta",
        "rotta": "rotta:rotta",
        "grata": "grata:grata",
        "calibrated": "calibrated:calibrated",
    }
)
