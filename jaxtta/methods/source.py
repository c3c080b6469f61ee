"""No adaptation: the source model as it is, the row every table starts from."""

from jaxtta import stats
from jaxtta.core import Method, Task
from jaxtta.methods.fixed import without_update


def source(model, task: Task) -> Method:
    """The source model with its running statistics.

    Adapts: nothing.
    Predicts: with the source's parameters and running statistics; instance and group norm keep none and take those of
        the image.
    """
    return without_update(model, stats.source())
