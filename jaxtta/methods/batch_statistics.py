"""Normalise with the statistics of the current image, and change nothing else."""

from jaxtta import stats
from jaxtta.core import Method, Task
from jaxtta.methods.fixed import without_update
from jaxtta.models import require_batch_norm


def batch_statistics(model, task: Task) -> Method:
    """Prediction-time batch normalisation.

    Adapts: no parameter; every batch norm takes the moments of the current image.
    Predicts: with the source's parameters and the image's statistics.

    Raises:
        InputError: the network has instance or group norm, which takes the moments of the image by itself.

    Reference:
        Nado et al., "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift", 2020.
    """
    require_batch_norm(model, "batch_statistics")
    return without_update(model, stats.image())
