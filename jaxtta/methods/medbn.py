"""MedBN: normalise with the median of the current image in the place of its mean."""

from jaxtta import stats
from jaxtta.core import Method, Task
from jaxtta.methods.fixed import without_update
from jaxtta.models import require_batch_norm


def medbn(model, task: Task) -> Method:
    """Median batch normalisation: centre and spread of each channel c over batch and space.

        η_c = median x_c;  ρ_c² = mean (x_c − η_c)²;  y = γ (x − η) / √(ρ² + ε) + β

    Adapts: no parameter; every batch norm takes these moments of the current image. A layer that whitens keeps its mean
        and covariance.
    Predicts: with the source's parameters. A median sorts: on CPU it takes about a hundred times as long as a mean.
    Differs from the paper: that puts the layer into other methods as well; here it is all there is. Our choice: the
        median is over batch and space together, that of an even number of values the mean of the middle two.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented.

    Raises:
        InputError: the network has instance or group norm, which takes the moments of the image by itself.

    Reference:
        Park, Hwang, Mun, Park, Ok, "MedBN: Robust Test-Time Adaptation against Malicious Test Samples", CVPR 2024.
    """
    require_batch_norm(model, "medbn")
    return without_update(model, stats.median())
