"""MedBN: normalise with the median of the current image in the place of its mean, alone or under TENT's update."""

import optax

from jaxtta import stats
from jaxtta.core import Method, Select, Task, norm_affine
from jaxtta.methods.fixed import without_update
from jaxtta.methods.tent import minimising_entropy
from jaxtta.models import require_batch_norm


def medbn(model, task: Task) -> Method:
    """Median batch normalisation alone: centre and spread of each channel c over batch and space.

        η_c = median x_c;  ρ_c² = mean (x_c − η_c)²;  y = γ (x − η) / √(ρ² + ε) + β

    Adapts: no parameter; every batch norm takes these moments of the current image. A layer that whitens keeps its mean
        and covariance.
    Predicts: with the source's parameters. A median sorts: on CPU it takes about a hundred times as long as a mean.
    Differs from the paper: that means the layer for methods that update, as `medbn_tent` does; here it is all there is.
        The median is over batch and space together, as in the released code; that of an even number of values is the
        mean of the middle two (our choice).

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


def medbn_tent(
    model,
    task: Task,
    *,
    optimiser: optax.GradientTransformation = optax.adam(1e-3),
    select: Select = norm_affine,
) -> Method:
    """TENT's update under the moments of `medbn`, through which the gradient goes too.

    Adapts: scale and shift of every norm layer (`select`).
    Predicts: after the update, with the same moments.
    Differs from the paper: it has the layer in several methods, of which this is the plainest; as in `tent`, an image
        profits from its own update.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented.
        optimiser: any optax transformation; the default is TENT's for segmentation.
        select: which parameters adapt.

    Returns:
        A method whose info holds `loss` and `gradient_norm`.

    Raises:
        InputError: the network has instance or group norm, which takes the moments of the image by itself.

    Reference:
        Park, Hwang, Mun, Park, Ok, "MedBN: Robust Test-Time Adaptation against Malicious Test Samples", CVPR 2024.
    """
    require_batch_norm(model, "medbn_tent")
    return minimising_entropy(stats.median(), model, task, optimiser, select)
