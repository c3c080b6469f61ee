"""Normalise with the statistics of the current image, and change nothing else."""

from jaxtta import stats
from jaxtta.core import Method, Task
from jaxtta.methods.fixed import without_update


def batch_statistics(model, task: Task) -> Method:
    """Prediction-time batch normalisation.

    Adapts: no parameter; every batch norm takes the moments of the current image. Instance and group norm do so by
    themselves, so on such networks this equals `source`.
    Predicts: with the source's parameters and the image's statistics.

    Reference:
        Nado et al., "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift", 2020.
    """
    return without_update(model, stats.image())
