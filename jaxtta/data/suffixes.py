"""The names of volumes' files."""

from pathlib import Path

SUFFIXES = (".nii", ".nii.gz")


def is_volume(path: Path | str) -> bool:
    """Whether a name is that of a NIfTI file, by its suffix."""
    return str(path).lower().endswith(SUFFIXES)


def without_suffix(name: str) -> str:
    """The name without `.nii` or `.nii.gz`; any other name as it is."""
    plain = name[:-3] if name.lower().endswith(".nii.gz") else name
    return plain[:-4] if plain.lower().endswith(".nii") else name
