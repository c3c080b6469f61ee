"""The registry: every method by its name. The command line, the benchmark and the conformance tests iterate over it."""

from jaxtta.methods.alpha_batch_norm import alpha_bn
from jaxtta.methods.batch_statistics import batch_statistics
from jaxtta.methods.grata import grata
from jaxtta.methods.progressive_batch_norm import progressive_bn
from jaxtta.methods.source import source
from jaxtta.methods.tent import tent
from jaxtta.methods.vptta import vptta

METHODS = {
    "source": source,
    "batch_statistics": batch_statistics,
    "alpha_bn": alpha_bn,
    "progressive_bn": progressive_bn,
    "tent": tent,
    "vptta": vptta,
    "grata": grata,
}
