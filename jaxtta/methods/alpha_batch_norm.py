"""Alpha-BN: a fixed mixture of the source's statistics and the image's."""

from jaxtta import stats
from jaxtta.core import InputError, Method, Task
from jaxtta.methods.fixed import without_update
from jaxtta.models import require_batch_norm


def alpha_bn(model, task: Task, *, alpha: float = 0.1) -> Method:
    """Statistics between the source's and the image's, `(1 − α) · source + α · image`, of means and of variances.

    Adapts: no parameter; every batch norm takes the mixed moments.
    Predicts: with the source's parameters.
    Differs from the paper: that also trains with these statistics (Core); here the mixture is all there is. The default
        is the setting of a widely used collection of methods for segmentation, not the paper's.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented.
        alpha: the image's share, above 0 and up to 1.

    Raises:
        InputError: alpha is not a share; the network has instance or group norm, which always takes the statistics of
            the image.

    Reference:
        You, Li, Zhao, "Test-time Batch Statistics Calibration for Covariate Shift", preprint 2021.
    """
    require_batch_norm(model, "alpha_bn")
    if not 0 < alpha <= 1:
        raise InputError(f"alpha is {alpha!r}; expected the image's share, above 0 and up to 1, as in 0.1")
    return without_update(model, stats.blend(alpha))
