"""What editors are told: the commands with the fields of their plans as keywords, and the modules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from jaxtta import benchmarks as benchmarks
from jaxtta import calibration as calibration
from jaxtta import checkpoint as checkpoint
from jaxtta import cli as cli
from jaxtta import core as core
from jaxtta import data as data
from jaxtta import distributed as distributed
from jaxtta import encoders as encoders
from jaxtta import errors as errors
from jaxtta import losses as losses
from jaxtta import methods as methods
from jaxtta import metrics as metrics
from jaxtta import models as models
from jaxtta import names as names
from jaxtta import objectives as objectives
from jaxtta import plans as plans
from jaxtta import plots as plots
from jaxtta import resize as resize
from jaxtta import run as run
from jaxtta import runs as runs
from jaxtta import schedule as schedule
from jaxtta import segmentation as segmentation
from jaxtta import stablehlo as stablehlo
from jaxtta import stats as stats
from jaxtta import style as style
from jaxtta import synthetic as synthetic
from jaxtta import torch_import as torch_import
from jaxtta import transfer as transfer
from jaxtta import views as views
from jaxtta import workflows as workflows
from jaxtta import wrappers as wrappers

__version__: str
COMMANDS: tuple[str, ...]
MODULES: tuple[str, ...]

_Fields = ParamSpec("_Fields")
_Plan = TypeVar("_Plan", contravariant=True)
_Told = TypeVar("_Told")
_Record = TypeVar("_Record", covariant=True)
_Result = TypeVar("_Result")

class _Command(Protocol[_Fields, _Plan, _Record]):
    @overload
    def __call__(self, plan: _Plan, /) -> _Record: ...
    @overload
    def __call__(self, *args: _Fields.args, **kwargs: _Fields.kwargs) -> _Record: ...

def _taking(plan: Callable[_Fields, _Told], record: Callable[..., _Result]) -> _Command[_Fields, _Told, _Result]: ...
def _json() -> dict[str, Any]: ...
def _dice() -> dict[str, float]: ...
def _folders() -> list[Path]: ...

adapt = _taking(plans.Adaptation, _json)
train = _taking(plans.SourceTraining, _json)
calibrate = _taking(plans.Calibration, _json)
finetune = _taking(plans.FineTuning, _json)
rank = _taking(plans.Ranking, _json)
adapt_multi = _taking(plans.MultiAdaptation, _json)
benchmark = _taking(plans.Benchmark, _json)
pretrain = _taking(plans.Pretraining, _json)
evaluate_encoder = _taking(plans.Evaluation, _json)
convert = _taking(plans.Conversion, _json)
export = _taking(plans.Export, _json)
demo = _taking(plans.Demo, _dice)
synthesize = _taking(plans.Synthesis, _folders)
