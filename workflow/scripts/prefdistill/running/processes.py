"""Share a job's work among its processes: ranks, sums, and common decisions.

Without a process group there is one process, and every function here returns at once.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from prefdistill.errors import UserError
from prefdistill.running.workers import RUN_FOLDER

TIMEOUT = timedelta(minutes=30)  # for one collective
BUCKET_NUMBERS = 2**26  # 256 MiB of float32 in one collective


def connect() -> None:
    """Join the other processes, over NCCL with one GPU each, or over gloo on the CPU.

    The environment variables are those that ``workers`` or torchrun sets.

    Raises:
        UserError: If the job sees fewer GPUs than it has processes.
    """
    n_workers = int(os.environ["WORLD_SIZE"])
    device = None
    if torch.cuda.is_available():
        n_gpus = torch.cuda.device_count()
        if n_gpus < n_workers:
            raise UserError(
                f"gpus: {n_workers} asked for, but the job sees {n_gpus}; lower gpus "
                "of the model, or give the job as many"
            )
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    folder = os.environ.get(RUN_FOLDER)
    dist.init_process_group(
        "nccl" if device else "gloo",
        init_method=f"file://{Path(folder, 'store')}" if folder else "env://",
        rank=int(os.environ["RANK"]),
        world_size=n_workers,
        timeout=TIMEOUT,
        device_id=device,
    )


def disconnect() -> None:
    """Leave the process group, at the end of the work."""
    if dist.is_initialized():
        dist.destroy_process_group()


def n_processes() -> int:
    """Return how many processes share this job's work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Tell whether this is the process that writes the job's files."""
    return rank() == 0


def _collective_device() -> torch.device:
    if dist.get_backend() == "gloo":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def any_process(flag: bool) -> bool:
    """Tell whether ``flag`` is true in any process; all must ask at the same point."""
    if n_processes() == 1:
        return flag
    flags = torch.tensor(float(flag), device=_collective_device())
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def sum_over_processes(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors by their sums over all processes, in place.

    Every process ends with the same bits.

    Args:
        tensors: float32, of the same shapes in every process.
    """
    if n_processes() == 1:
        return
    bucket: list[torch.Tensor] = []
    for i, tensor in enumerate(tensors):
        bucket.append(tensor)
        is_full = sum(each.numel() for each in bucket) >= BUCKET_NUMBERS
        if is_full or i == len(tensors) - 1:
            flat = torch.cat([each.reshape(-1) for each in bucket])
            flat = flat.to(_collective_device())
            dist.all_reduce(flat)
            parts = flat.split([each.numel() for each in bucket])
            for each, part in zip(bucket, parts, strict=True):
                each.copy_(part.view_as(each))
            bucket = []


def wait_for_all() -> None:
    """Return once every process has called this."""
    any_process(False)


def own_share(
    sizes: Sequence[int], counts: Sequence[int], *, in_step: bool
) -> list[tuple[int, float]]:
    """List the bins that this process works on, each with its weight in the sum.

    Args:
        sizes: Tokens of each bin, those of the first process first.
        counts: Number of bins of each process.
        in_step: Whether all processes must do the same number of bins, as a sharded
            model requires. A process with fewer then repeats the smallest bin, with
            weight 0.

    Returns:
        Index and weight of each bin.
    """
    first, n_own = sum(counts[: rank()]), counts[rank()]
    own = [(index, 1.0) for index in range(first, first + n_own)]
    if in_step:
        smallest = min(range(len(sizes)), key=lambda i: sizes[i])
        own += [(smallest, 0.0)] * (max(counts) - n_own)
    return own
