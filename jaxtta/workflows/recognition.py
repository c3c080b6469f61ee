"""What `jaxtta convert` was given: told by a file's first bytes, the names in it and its folder, nothing of it run.

What can be converted is told apart; all else ends in one line that says what it is and which route to take.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxtta.core import InputError
from jaxtta.trees import MANIFEST
from jaxtta.written import read_json

ROUTE = (
    "it has no architecture in it: build the network in Python, load the weights into it and call "
    "jaxtta.from_torch(network, example, task=..., out=...)"
)
# Names that tell whose network a state dict is of; the first that is found does.
FAMILIES = {
    "nnU-Net": r"^(encoder\.stages\.\d+\.|decoder\.(seg_layers|encoder|transpconvs)\.|decoder\.stages\.\d+\.convs\.)",
    "torchvision": r"^(backbone\.(layer\d|conv1|features|\d+\.)|classifier\.(low_classifier|cbr|\d+\.))",
    "segmentation_models_pytorch": r"^segmentation_head\.\d",
    "MONAI": r"(\.adn\.|^swinViT\.|^vit\.patch_embedding|^convInit\.|^in_tr\.conv_block|^input_block\.conv1|"
    r"^model\.0\.conv|^conv_0\.conv_0\.|\.submodule\.\d)",
    "transformers": r"^(segformer|mask2former|vit|swin)\.",
}
WRAPPERS = re.compile(r"^(module|model|net|network|_orig_mod)\.")


def kind_of(path: Path) -> str:
    """`"program"` for what `torch.export.save` wrote, `"nnunet"` for the folder of a trained nnU-Net, `"weights"` for
    what may be a state dict.

    Raises:
        InputError: anything else, in one line.
    """
    if (path / "plans.json").is_file():
        return "nnunet"
    if path.is_dir():
        raise InputError(f"{path}: {_folder(path)}")
    if not path.is_file():
        return "weights"  # whose reader says that there is none
    trained = path.resolve().parent.parent
    if (trained / "plans.json").is_file():
        raise InputError(
            f"{path}: a fold of a trained nnU-Net; give {trained}, which has its plans, with its number as `folds`"
        )
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        return _archive(path)
    if head.startswith(b"\x89HDF") or path.suffix in (".h5", ".hdf5", ".keras"):
        raise InputError(
            f"{path}: an HDF5 file, of Keras most likely, not PyTorch weights (.pth, .safetensors or .npz); build the "
            "network in JAX or PyTorch and make a checkpoint of it in Python"
        )
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head[:64]):
        raise InputError(
            f"{path}: an ONNX graph, in which batch norm is folded into the convolutions, so that nothing can be "
            "adapted; go back to the network in PyTorch and call jaxtta.from_torch(network, example, task=..., out=...)"
        )
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        _refuse_modules(path, _classes(path.read_bytes()))
    return "weights"


def _folder(path: Path) -> str:
    if (path / MANIFEST).is_file():
        return "is a checkpoint of jaxtta already; give it to jaxtta adapt `source`"
    if any(path.glob("*/plans.json")):
        return f"holds trained nnU-Nets; give one of its folders, such as {next(path.glob('*/plans.json')).parent.name}"
    if (path / "config.json").is_file():
        kind = (read_json(path / "config.json").get("architectures") or ["a network"])[0]
        return f"a folder of transformers or smp ({kind}): load it in Python and call jaxtta.from_torch(...)"
    return (
        "is a folder, expected a file of weights (.pth, .safetensors or .npz) or of torch.export.save (.pt2), or a "
        "trained nnU-Net's folder with plans.json in it"
    )


def _archive(path: Path) -> str:
    """What a zip file is: a program, TorchScript, arrays, or a pickle of `torch.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("data.pkl")]
            content = archive.read(pickles[0]) if pickles else b""
    except (zipfile.BadZipFile, OSError):
        return "weights"  # whose reader says how it is damaged
    if any(name.endswith(("serialized_exported_program.json", "model.json", "archive_format")) for name in names):
        return "program"
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise InputError(
            f"{path}: a TorchScript module, which cannot be traced again; build the network in Python, load "
            "the weights of torch.jit.load(...).state_dict() into it and call jaxtta.from_torch(network, example, ...)"
        )
    _refuse_modules(path, _classes(content))
    return "weights"


def _classes(pickled: bytes) -> list[str]:
    """The names of what a pickle would call, told without calling anything."""
    found, words = [], []
    try:
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name == "GLOBAL":
                found.append(argument.replace(" ", "."))
            elif operation.name == "STACK_GLOBAL":
                found.append(".".join(words[-2:]))
            elif isinstance(argument, str):
                words.append(argument)
    except Exception:  # a damaged pickle: whoever reads it says so
        return found
    return found


def _refuse_modules(path: Path, classes: Iterable[str]) -> None:
    plain = (
        "torch._utils.",
        "torch.storage.",
        "torch.serialization.",
        "collections.",
        "numpy.",
        "_codecs.",
        "builtins.",
    )
    plain += tuple(
        f"torch.{kind}" for kind in ("Float", "Half", "BFloat16", "Long", "Int", "Double", "Bool", "Byte", "Size")
    )
    modules = [name for name in classes if not name.startswith((*plain, "torch.device", "torch.float", "argparse."))]
    modules = [name for name in modules if re.search(r"\.[A-Z]\w*$", name) and not name.startswith("pathlib.")]
    if modules:
        raise InputError(
            f"{path}: a pickled module ({modules[0]}), which is code and not run here; load it in Python with "
            "torch.load(..., weights_only=False) where you trust it, and call jaxtta.from_torch(network, example, ...)"
        )


def refuse_families(path: Path, names: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Raises InputError where a state dict is of a family of networks that is known by its names, or where it has
    hardly a name of those that are expected.

    Args:
        path: the file.
        names: of the state dict.
        expected: of the architecture that it was taken for.
    """
    bare = [WRAPPERS.sub("", name) for name in names]
    wanted = {*expected}
    if 2 * len(wanted & {*bare, *names}) >= len(wanted):
        return
    for family, pattern in FAMILIES.items():
        if any(re.search(pattern, name) for name in (*names, *bare)):
            raise InputError(f"{path}: a state dict of a network of {family} ({len(bare)} arrays); {ROUTE}")
    if len(bare) > 4:
        some = ", ".join(list(names)[:3])
        raise InputError(f"{path}: a state dict of a network that is not known here ({some}, ...); {ROUTE}")
