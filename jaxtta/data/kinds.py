"""The kinds of data, by their names in a manifest."""

import dataclasses
from typing import Any

from jaxtta.core import InputError
from jaxtta.data.nnunet import NNUNetPreprocessing
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.data.volumes import VolumePreprocessing

Kind = Preprocessing | VolumePreprocessing | NNUNetPreprocessing
KINDS = {kind.kind: kind for kind in (Preprocessing, VolumePreprocessing, NNUNetPreprocessing)}


LATER = {"image": {"intensity": "minmax"}}
"""Entries that manifests did not always have, by the kind, with what they stand for where they are absent."""


def to_dict(preprocessing: Kind) -> dict[str, Any]:
    """Plain values for a manifest; without a later entry that has the value it stands for."""
    later = LATER.get(preprocessing.kind, {})
    values = {k: v for k, v in dataclasses.asdict(preprocessing).items() if k not in later or v != later[k]}
    return {"kind": preprocessing.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


def from_dict(values: dict[str, Any]) -> Kind:
    """The inverse of `to_dict`; without a kind it is a picture's.

    Raises:
        InputError: an unknown or missing entry, or a value that makes no sense.
    """
    values = dict(values)
    name = values.pop("kind", "image")
    if name not in KINDS:
        raise InputError(f"preprocessing is of the kind {name!r}; this jaxtta knows {', '.join(KINDS)}")
    values = LATER.get(name, {}) | values
    known = [field.name for field in dataclasses.fields(KINDS[name])]
    if set(values) != set(known):
        raise InputError(f"preprocessing has the entries {', '.join(sorted(values))}; expected {', '.join(known)}")
    return KINDS[name](**values)
