"""Several processes, on one host or many: joining them, and a word that all of them agree on.

Streams are independent, so the processes share out the domains and exchange nothing while they adapt.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtta.core import InputError

Result = TypeVar("Result")
LOOPBACK = ("127.0.0.1", "localhost")


def join(coordinator: str | None = None, *, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of a run; call it before anything else of JAX.

    Args:
        coordinator: `host:port` of process 0; None finds all three by itself, under SLURM, Open MPI or on a TPU pod. On
            the loopback address nothing listens to other hosts.
        processes: how many there are.
        process: which this is, from 0 on.

    Raises:
        InputError: the processes could not be found or reached.
    """
    bind = coordinator if coordinator is not None and coordinator.split(":")[0] in LOOPBACK else None
    try:
        jax.distributed.initialize(coordinator, processes, process, coordinator_bind_address=bind)
    except (ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"the processes cannot join ({reason}); outside SLURM, Open MPI and TPU pods give `coordinator` HOST:PORT, "
            "`processes` and `process`"
        ) from error


def speaks() -> bool:
    """Whether this process is the one that speaks for all."""
    return jax.process_index() == 0


def everyone(word: bool) -> bool:
    """Whether the word is true in every process; waits until all have spoken."""
    if jax.process_count() == 1:
        return word
    mesh = jax.make_mesh((jax.device_count(),), ("device",), axis_types=(AxisType.Auto,))
    spoken = np.full(jax.local_device_count(), word, np.int32)
    whole = jax.make_array_from_process_local_data(NamedSharding(mesh, P("device")), spoken)
    return bool(jax.jit(jnp.min, out_shardings=NamedSharding(mesh, P()))(whole))


def together(action: Callable[[], Result]) -> Result:
    """Does something in every process and waits for all; where it fails in one, all of them end.

    Raises:
        InputError: what the action raises, here or in another process.
        OSError: what the action raises here.
    """
    failed, result = None, None
    try:
        result = action()
    except (InputError, OSError) as error:
        failed = error
    if not everyone(failed is None):
        raise failed or InputError("another process ended; its message says why")
    return result
