"""Progressive batch norm: from the source's statistics to the image's, as images are seen."""

from jaxtta import stats
from jaxtta.core import InputError, Method, Task
from jaxtta.methods.fixed import without_update
from jaxtta.models import require_batch_norm


def progressive_bn(model, task: Task, *, tau: float = 1.0) -> Method:
    """Statistics between the source's and the image's, the nearer to the image's the more images were seen.

        (1 − a) · source + a · image, of means and of variances,  a = √n / (√n + τ),  n images seen, this one included

    Adapts: no parameter; the state is n.
    Predicts: after counting the image. `predict` takes its image for the last of those counted, so that it repeats the
        step's prediction; a state that has seen none predicts with the source's statistics.
    Differs from the paper: it is one half of that method, which also adapts the norm affines and averages its
        prediction over six views. A batch, which is normalised as one, counts once. There was no code to check it by.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented.
        tau: the source's statistics have the larger share until n = τ²; above 0.

    Raises:
        InputError: tau is not a positive number; the network has instance or group norm, which always takes the
            statistics of the image.

    Reference:
        Jang, Lee, Lee, Choi, Kim, "SGP-TTA: Skeleton-Guided Progressive Test-Time Adaptation for Thin Curvilinear
        Structures", preprint 2026.
    """
    require_batch_norm(model, "progressive_bn")
    if not 0 < tau < float("inf"):
        raise InputError(f"tau is {tau!r}; expected a positive number, as in 1.0")
    return without_update(model, stats.progressive(tau), afterwards=stats.progressive(tau, counts=False))
