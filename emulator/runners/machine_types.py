"""fal's machine types: what a runner of each has, and which one a test pretends [§4.9].

CPUs, memory and the GPU's memory are those of fal's pages. ASSUMED, as no page tells them: which of
NVIDIA's products a type is, by the name, memory and power limit that ``nvidia-smi`` usually prints
for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from emulator.errors import EmulatorError

__all__ = ["GPU", "MACHINE_TYPES", "MachineType", "Pretended", "environment_of", "pretend"]


@dataclass(frozen=True)
class GPU:
    """A model of GPU, as ``nvidia-smi`` tells of it."""

    #: ``name``, for example ``NVIDIA H100 80GB HBM3``.
    product: str
    #: ``memory.total`` in MiB.
    memory: int
    #: ``compute_cap``.
    capability: tuple[int, int]
    #: ``power.limit`` in watts.
    power: int
    #: Whether it can be split into MIG instances; it is not.
    splits: bool = False


@dataclass(frozen=True)
class MachineType:
    """A machine type; None is what no page of fal's tells."""

    #: As in ``machine_type = "GPU-H100"``.
    name: str
    cpus: float | None
    #: Gigabytes of RAM.
    memory: float | None
    #: Gigabytes of the memory of each GPU, as fal counts them.
    gpu_memory: int | None = None
    gpu: GPU | None = None


_A100 = GPU("NVIDIA A100-SXM4-40GB", 40960, (8, 0), 400, splits=True)

#: All of them by name, those of fal's older pages included.
MACHINE_TYPES = {
    machine.name: machine
    for machine in (
        MachineType("XS", 0.5, 0.512),
        MachineType("S", 1, 1),
        MachineType("M", 2, 2),
        MachineType("L", 4, 15),
        MachineType("XL", 8, 30),
        MachineType("GPU-A100", 12, 60, 40, _A100),
        MachineType("GPU-L40", 6, 100, 48, GPU("NVIDIA L40", 46068, (8, 9), 300)),
        MachineType(
            *("GPU-H100", 12, 112, 80),
            GPU("NVIDIA H100 80GB HBM3", 81559, (9, 0), 700, splits=True),
        ),
        MachineType(
            *("GPU-RTXPRO6000", 6, 100, 96),
            GPU("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, (12, 0), 600, splits=True),
        ),
        MachineType("GPU-H200", 12, 112, 141, GPU("NVIDIA H200", 143771, (9, 0), 700, splits=True)),
        MachineType(
            "GPU-B200", 19, 210, 192, GPU("NVIDIA B200", 183359, (10, 0), 1000, splits=True)
        ),
        # On the price list alone, so the spelling of its name is ASSUMED too.
        MachineType(
            *("GPU-B300", None, None, 288),
            GPU("NVIDIA B300 SXM6 AC", 275040, (10, 3), 1100, splits=True),
        ),
        MachineType("GPU-A6000", 10, 18, 48, GPU("NVIDIA RTX A6000", 49140, (8, 6), 300)),
        MachineType("GPU-RTX4090", 12, 48, 24, GPU("NVIDIA GeForce RTX 4090", 24564, (8, 9), 450)),
        MachineType("GPU-RTX5090", 14, 60, 32, GPU("NVIDIA GeForce RTX 5090", 32607, (12, 0), 575)),
        MachineType("GPU", 8, 64, 40, _A100),  # legacy
    )
}
_MOST_GPUS = 8


@dataclass(frozen=True)
class Pretended:
    """The GPUs that a runner pretends to have."""

    machine: MachineType
    gpu: GPU
    count: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a runner in a process of its own has because of them."""
        return environment_of(self.machine, self.count)

    def programs(self, runner: str) -> dict[str, str]:
        """The programs that such a runner has, by name; the GPUs are the *runner*'s own."""
        from emulator.runners.nvidia_smi import script

        return {"nvidia-smi": script(self.gpu, self.count, runner)}


def pretend(gpu: str | bool | None, app: type) -> Pretended | None:
    """What ``fal_runner(app, gpu=...)`` means.

    Args:
        gpu: a machine type, with or without its ``GPU-``; True or ``"auto"``: the app's own, the
            first one where it names several, which may have none; None or False: no GPU.
        app: ``num_gpus`` of it, or 1, is how many there are.

    Raises:
        EmulatorError: there is no such machine type, or not with so many GPUs.
    """
    if gpu is None or gpu is False:
        return None
    if gpu is True or gpu == "auto":
        machine = _own_machine_type(app)
    else:
        machine = _machine_type_with_gpu(gpu)
    if machine.gpu is None:
        return None
    return Pretended(machine, machine.gpu, _count(app))


def environment_of(machine: MachineType, count: int) -> dict[str, str]:
    """The variables that a runner with GPUs of its own process has because of them.

    ASSUMED: fal documents none. These two are how NVIDIA's container runtime is told to give a
    container its GPUs, and most images with CUDA carry them. ``CUDA_VISIBLE_DEVICES`` is not set,
    and nothing limits CPUs and memory to those of the machine type.
    """
    if machine.gpu is None or not count:
        return {}
    return {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


def _machine_type_with_gpu(name: object) -> MachineType:
    for spelled in (name, f"GPU-{name}"):
        machine = MACHINE_TYPES.get(spelled) if isinstance(spelled, str) else None
        if machine is not None and machine.gpu is not None:
            return machine
    raise EmulatorError(
        f"gpu={name!r} is no machine type with a GPU. Write one of {_names(with_gpu=True)}; "
        f'"H100" is short for "GPU-H100", and gpu=True is the app\'s own machine_type.'
    )


def _own_machine_type(app: type) -> MachineType:
    wanted = getattr(app, "machine_type", "S")
    first = wanted if isinstance(wanted, str) else next(iter(wanted), None)
    if first not in MACHINE_TYPES:
        raise EmulatorError(
            f"gpu=True asks for the machine type of {app.__name__}, and its machine_type "
            f"{wanted!r} is none. Write one of {_names(with_gpu=False)}."
        )
    return MACHINE_TYPES[first]


def _names(with_gpu: bool) -> str:
    return ", ".join(
        machine.name for machine in MACHINE_TYPES.values() if machine.gpu or not with_gpu
    )


def _count(app: type) -> int:
    wanted: int | None = getattr(app, "num_gpus", None)
    if wanted is None:
        return 1
    if wanted not in range(1, _MOST_GPUS + 1):
        raise EmulatorError(
            f"{app.__name__} has num_gpus = {wanted!r}, and a machine has 1 to {_MOST_GPUS} GPUs. "
            f"Write for example num_gpus = 2."
        )
    return wanted
