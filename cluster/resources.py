"""Resources that trials hold while they run, and the error of machines that cannot run them."""

from __future__ import annotations

from dataclasses import dataclass


class ClusterError(RuntimeError):
    """The machines cannot run this study: no cluster at the address, storage not shared, resources never free."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """CPUs and GPUs that one pack of trials holds while it runs, and how it is run; fractions share a device."""

    cpus: float = 1.0
    gpus: float = 0.0
    max_retries: int = 3
    """Starts after a crash of worker or node, each from the last checkpoint."""
    pack: int | None = None
    """Trials of a pack; None leaves it to :func:`cluster.scheduling.packs.form_packs`."""
    grow_to: int | None = None
    """Packs that a growing cluster will run at once: a first node is waited for, and trials are spread over so many
    slots. None: only the nodes that are there count."""
    engine: str = "auto"
    """What computes encoder and head, see :mod:`jbot.trainer.engines.select`."""

    @property
    def device(self) -> str:
        """The torch device of a worker."""
        return "cuda" if self.gpus > 0 else "cpu"

    @property
    def threads(self) -> int:
        """torch threads of a worker."""
        return max(1, int(self.cpus))

    def begin_inline(self, what: str) -> None:
        """Set torch's threads in this process, which trains without Ray.

        Raises ClusterError when a GPU is asked for and there is none here.
        """
        import torch

        if self.gpus > 0 and not torch.cuda.is_available():
            raise ClusterError(f"{what} ask for {self.gpus:g} GPUs and there is none here; use --gpus 0")
        torch.set_num_threads(self.threads)
