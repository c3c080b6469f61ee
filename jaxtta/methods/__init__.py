"""The registry: every method by its name. The command line, the benchmark and the conformance tests iterate over it."""

from jaxtta.methods.alpha_batch_norm import alpha_bn
from jaxtta.methods.batch_statistics import batch_statistics
from jaxtta.methods.cotta import cotta
from jaxtta.methods.diga import diga
from jaxtta.methods.dltta import dltta
from jaxtta.methods.domain_adaptor import domain_adaptor
from jaxtta.methods.dua import dua
from jaxtta.methods.eata import eata
from jaxtta.methods.grata import grata
from jaxtta.methods.intent import intent
from jaxtta.methods.medbn import medbn
from jaxtta.methods.memo import memo
from jaxtta.methods.progressive_batch_norm import progressive_bn
from jaxtta.methods.rotta import rotta
from jaxtta.methods.sar import sar
from jaxtta.methods.sictta import sictta
from jaxtta.methods.source import source
from jaxtta.methods.tent import tent
from jaxtta.methods.vptta import vptta

METHODS = {
    "source": source,
    "batch_statistics": batch_statistics,
    "alpha_bn": alpha_bn,
    "progressive_bn": progressive_bn,
    "medbn": medbn,
    "intent": intent,
    "dua": dua,
    "tent": tent,
    "eata": eata,
    "sar": sar,
    "memo": memo,
    "vptta": vptta,
    "diga": diga,
    "domain_adaptor": domain_adaptor,
    "sictta": sictta,
    "dltta": dltta,
    "cotta": cotta,
    "rotta": rotta,
    "grata": grata,
}
