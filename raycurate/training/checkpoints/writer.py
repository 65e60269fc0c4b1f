"""Writing beside the training: copies in the host's memory, a thread, and process groups of its own.

    beside = Beside()                           # every rank, at the same place
    weights, moments = beside.copies(weights, moments)
    beside.start(lambda: write(weights, moments))
    ...                                         # steps go on
    beside.settle()                             # raises what the writing raised

The thread gathers shards and waits for the other ranks while the training does the same, and two threads that share a
process group would take each other's messages. So it has Gloo groups of its own, over the same ranks, and works on
copies in the host's memory, which the next steps do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from raycurate.training.collectives import world

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class Beside:
    """One piece of work at a time in a second thread. Every rank makes one, and uses it at the same places.

    Args:
        timeout: after which one of the thread's collectives counts as failed; torch's own by default.

    Attributes:
        group: the thread's process group, over all ranks; None where there is one rank.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        self._timeout = timeout
        self.group: ProcessGroup | None = gloo_group(timeout=timeout)
        self._meshes: dict[Any, DeviceMesh] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def copies(self, *named: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The same tensors in the host's memory; what is one memory there is one copy here.

        Sharded tensors stay sharded, over the thread's groups: `full_tensor()` is then for the thread alone.
        """
        made: dict[tuple[Any, ...], Tensor] = {}
        copied = [{name: self._copy(tensor, made) for name, tensor in some.items()} for some in named]
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies are under way
        return copied

    def _copy(self, tensor: Tensor, made: dict[tuple[Any, ...], Tensor]) -> Tensor:
        from torch.distributed.tensor import DTensor

        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        key = (local.data_ptr(), local.shape, local.stride(), local.dtype)
        if key not in made:
            host = torch.empty_like(local, device="cpu", pin_memory=local.is_cuda, requires_grad=False)
            made[key] = host.copy_(local.detach(), non_blocking=True)
        if not isinstance(tensor, DTensor):
            return made[key]
        mesh = self._mesh(tensor.device_mesh)
        return DTensor.from_local(
            made[key], mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )

    def _mesh(self, mesh: DeviceMesh) -> DeviceMesh:
        """The same ranks in the same order, on the host, with groups of the thread's own."""
        from torch.distributed.device_mesh import DeviceMesh

        if mesh not in self._meshes:
            groups: list[ProcessGroup] = []
            for axis in range(mesh.ndim):
                for ranks in mesh.mesh.movedim(axis, -1).reshape(-1, mesh.size(axis)).tolist():
                    group = gloo_group(ranks, timeout=self._timeout)  # every rank makes every group
                    if world()[0] in ranks:
                        assert group is not None
                        groups.append(group)
            names = mesh.mesh_dim_names
            self._meshes[mesh] = (
                DeviceMesh.from_group(groups[0], "cpu", mesh_dim_names=names)
                if mesh.ndim == 1
                else DeviceMesh.from_group(groups, "cpu", mesh.mesh.cpu(), mesh_dim_names=names)
            )
        return self._meshes[mesh]

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work` in the thread, once what is under way has ended.

        Raises:
            BaseException: what the work before raised.
        """
        self.settle()
        self._running = self._thread.submit(work)

    @property
    def over(self) -> bool:
        """Whether work has ended, well or not, that was not settled yet."""
        return self._running is not None and self._running.done()

    def settle(self) -> None:
        """Wait for the work that is under way.

        Raises:
            BaseException: what it raised, once.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()


def gloo_group(ranks: list[int] | None = None, *, timeout: timedelta | None = None) -> ProcessGroup | None:
    """A new process group over the host's network; None where torch.distributed was not started. Collective."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.new_group(ranks, backend="gloo", timeout=timeout)
