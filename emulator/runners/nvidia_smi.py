"""``nvidia-smi`` for a pretended GPU: a shell script that has all its answers in it.

It needs no other program (but ``date``, where a time is asked for), so it works in any runner and
takes a millisecond. It knows what apps and libraries call: the table, ``-L``, ``-q``,
``--version``, ``-i``, ``--query-gpu`` and ``--query-compute-apps`` as CSV. Everything else it
answers as the real one answers what it does not know.

ASSUMED: texts and exit codes are those of driver 570 as seen in public logs and told by the manual;
none was compared with a real one.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulator.runners.machine_types import GPU

__all__ = ["CUDA_VERSION", "DRIVER_VERSION", "script"]

#: ASSUMED: which driver fal's machines have is not documented.
DRIVER_VERSION = "570.124.06"
CUDA_VERSION = "12.8"

_NAMESPACE = uuid.UUID("a1e7a3b6-2d39-5c0e-9c5e-0f5a6e1c7d42")
_UNKNOWN = "[N/A]"


def script(gpu: GPU, count: int, runner: str) -> str:
    """The program for a machine with *count* GPUs, whose UUIDs are of this *runner* alone."""
    indices = range(count)
    return _TEMPLATE.format(
        driver=DRIVER_VERSION,
        nvml=DRIVER_VERSION.rpartition(".")[0],
        cuda=CUDA_VERSION,
        product=shlex.quote(gpu.product),
        memory=gpu.memory,
        all=" ".join(map(str, indices)),
        count=count,
        identities="\n".join(_identity(runner, gpu, index) for index in indices),
        fields="\n".join(_fields(gpu, count)),
        head=shlex.quote(_table_head()),
        rows="\n".join(f"        {i}) emit {shlex.quote(_table_row(gpu, i))} ;;" for i in indices),
        foot=shlex.quote(_TABLE_FOOT),
    )


def _uuid(runner: str, gpu: GPU, index: int) -> str:
    return f"GPU-{uuid.uuid5(_NAMESPACE, f'{runner} {gpu.product} {index}')}"


def _bus(index: int) -> str:
    return f"00000000:{0x18 + 0x10 * index:02X}:00.0"


def _identity(runner: str, gpu: GPU, index: int) -> str:
    return (
        f"        {index}) uuid={_uuid(runner, gpu, index)} bus={_bus(index)} "
        f"serial={1650000000000 + index} ;;"
    )


# --- --query-gpu -----------------------------------------------------------------------------


def _fields(gpu: GPU, count: int) -> Iterator[str]:
    """A line of the script for each field: its names, the first of which is the header's."""
    for names, unit, value in (*_of_the_model(gpu), *_of_one_of_them(count), *_unknown()):
        yield f"        {'|'.join(names)}) header={names[0]} unit={unit} value={value} ;;"


_Field = tuple[Sequence[str], str, str]


def _of_the_model(gpu: GPU) -> Iterator[_Field]:
    major, minor = gpu.capability
    mig = "Disabled" if gpu.splits else _UNKNOWN
    yield ("name", "gpu_name"), "", "$product"
    yield ("compute_cap",), "", f"{major}.{minor}"
    yield ("driver_version",), "", DRIVER_VERSION
    yield ("memory.total",), "MiB", str(gpu.memory)
    yield ("memory.free",), "MiB", str(gpu.memory)
    yield ("power.limit", "enforced.power.limit"), "W", f"{gpu.power}.00"
    yield ("power.max_limit",), "W", f"{gpu.power}.00"
    yield ("power.draw", "power.draw.instant"), "W", f"{_idle_power(gpu)}.00"
    yield ("mig.mode.current",), "", f"'{mig}'"
    yield ("mig.mode.pending",), "", f"'{mig}'"


def _of_one_of_them(count: int) -> Iterator[_Field]:
    yield ("index",), "", "$index"
    yield ("count",), "", str(count)
    yield ("uuid", "gpu_uuid"), "", "$uuid"
    yield ("serial", "gpu_serial"), "", "$serial"
    yield ("pci.bus_id", "gpu_bus_id"), "", "$bus"
    yield ("pci.domain",), "", "0x0000"
    yield ("timestamp",), "", "$(date '+%Y/%m/%d %H:%M:%S.000')"
    for name in ("memory.used", "memory.reserved"):
        yield (name,), "MiB", "0"
    for name in ("utilization.gpu", "utilization.memory"):
        yield (name,), "%", "0"
    yield ("temperature.gpu",), "", "30"
    yield ("pstate",), "", "P0"
    yield ("persistence_mode",), "", "Enabled"
    yield ("compute_mode",), "", "Default"
    yield ("display_mode",), "", "Disabled"
    yield ("display_active",), "", "Disabled"


def _unknown() -> Iterator[_Field]:
    """Fields of the real one that nothing depends on: it gives this answer too, for some GPUs."""
    for name in ("fan.speed", "vbios_version", "temperature.memory", "ecc.mode.current"):
        yield (name,), "", f"'{_UNKNOWN}'"
    for name in ("graphics", "sm", "memory", "video"):
        yield (f"clocks.current.{name}", f"clocks.{name}"), "MHz", f"'{_UNKNOWN}'"
    for name in ("gen.current", "gen.max", "width.current", "width.max"):
        yield (f"pcie.link.{name}",), "", f"'{_UNKNOWN}'"


# --- the table -------------------------------------------------------------------------------


def _idle_power(gpu: GPU) -> int:
    return gpu.power // 10


def _table_head() -> str:
    versions = f"{DRIVER_VERSION:<23}Driver Version: {DRIVER_VERSION:<15}CUDA Version: "
    return "\n".join(
        (
            f"+{'-' * 89}+",
            f"| NVIDIA-SMI {versions}{CUDA_VERSION:<9}|",
            f"|{'-' * 41}+{'-' * 24}+{'-' * 22}+",
            "| GPU  Name                 Persistence-M | Bus-Id          Disp.A "
            "| Volatile Uncorr. ECC |",
            "| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage "
            "| GPU-Util  Compute M. |",
            f"|{' ' * 41}|{' ' * 24}|               MIG M. |",
            f"|{'=' * 41}+{'=' * 24}+{'=' * 22}|",
        )
    )


_TABLE_FOOT = "\n".join(
    (
        " " * 91,
        f"+{'-' * 89}+",
        f"| Processes:{' ' * 78}|",
        f"|  GPU   GI   CI{' ' * 14}PID   Type   Process name{' ' * 24}GPU Memory |",
        f"|        ID   ID{' ' * 63}Usage      |",
        f"|{'=' * 89}|",
        f"|  No running processes found{' ' * 61}|",
        f"+{'-' * 89}+",
    )
)


def _table_row(gpu: GPU, index: int) -> str:
    # As the real one does it: a name that is too long loses its end.
    name = gpu.product if len(gpu.product) <= 26 else f"{gpu.product[:23]}..."
    power = f"{_idle_power(gpu)}W / {gpu.power:>4}W"
    memory = f"0MiB / {gpu.memory:>6}MiB"
    mig = "Disabled" if gpu.splits else "N/A"
    return "\n".join(
        (
            f"| {index:>3}  {name:<26}     On  |   {_bus(index)} Off |{'0':>21} |",
            f"| N/A   30C    P0    {power:>20} | {memory:>22} |      0%      Default |",
            f"|{' ' * 41}|{' ' * 24}|{mig:>21} |",
            f"+{'-' * 41}+{'-' * 24}+{'-' * 22}+",
        )
    )


# --- the script ------------------------------------------------------------------------------

_TEMPLATE = r"""#!/bin/sh
# nvidia-smi of a pretended GPU: the emulator's, not NVIDIA's.
set -f
product={product}
emit() {{ printf '%s\n' "$1"; }}
stop() {{ emit "$2"; exit "$1"; }}

identify() {{  # of the GPU number $index
    case $index in
{identities}
    esac
}}

look_up() {{  # the field $1 of that GPU
    case $1 in
{fields}
        *) stop 2 "Field \"$1\" is not a valid field to query.
" ;;
    esac
}}

choose() {{  # the GPUs that $1 names, by number, UUID or bus
    chosen=
    IFS=,
    for wanted in $1; do
        for index in {all}; do
            identify
            case $wanted in "$index"|"$uuid"|"$bus") chosen="$chosen $index" ;; esac
        done
    done
    unset IFS
    [ -n "$chosen" ] || stop 6 'No devices were found'
}}

shape() {{
    [ -n "$format" ] ||
        stop 2 "\"--format=\" switch is missing. Please run 'nvidia-smi -h' for help."
    with_header=yes with_units=yes
    IFS=,
    for word in $format; do
        case ${{word# }} in
            csv) ;;
            noheader) with_header= ;;
            nounits) with_units= ;;
            *) stop 2 "\"--format=\" switch is invalid. Please run 'nvidia-smi -h' for help." ;;
        esac
    done
    unset IFS
}}

print_line() {{  # $1 of each field: its header or its value
    line=
    IFS=,
    for field in $query; do
        unset IFS
        look_up "${{field# }}"
        case $1$with_units in
            header*) [ -z "$unit" ] || header="$header [$unit]"; cell=$header ;;
            valueyes)
                case $unit$value in "$value"|*'[N/A]') ;; *) value="$value $unit" ;; esac
                cell=$value ;;
            *) cell=$value ;;
        esac
        line="$line, $cell"
        IFS=,
    done
    unset IFS
    emit "${{line#, }}"
}}

query_gpu() {{
    shape
    index=0
    identify
    IFS=,
    for field in $query; do unset IFS; look_up "${{field# }}"; IFS=,; done
    unset IFS
    [ -z "$with_header" ] || print_line header
    for index in $chosen; do identify; print_line value; done
}}

query_apps() {{  # nothing runs on a pretended GPU
    shape
    line=
    IFS=,
    for field in $query; do
        case ${{field# }} in
            pid|gpu_name|gpu_uuid|gpu_bus_id|gpu_serial|timestamp) cell=${{field# }} ;;
            name|process_name) cell=process_name ;;
            used_memory|used_gpu_memory) cell='used_gpu_memory [MiB]' ;;
            *) stop 2 "Field \"${{field# }}\" is not a valid field to query.
" ;;
        esac
        line="$line, $cell"
    done
    unset IFS
    [ -z "$with_header" ] || emit "${{line#, }}"
}}

list() {{
    for index in $chosen; do identify; emit "GPU $index: $product (UUID: $uuid)"; done
}}

table() {{
    date '+%a %b %e %H:%M:%S %Y       '
    emit {head}
    for index in $chosen; do case $index in
{rows}
    esac; done
    emit {foot}
}}

report() {{
    emit "
==============NVSMI LOG==============

Timestamp                                 : $(date '+%a %b %e %H:%M:%S %Y')
Driver Version                            : {driver}
CUDA Version                              : {cuda}

Attached GPUs                             : {count}"
    for index in $chosen; do
        identify
        emit "GPU $bus
    Product Name                          : $product
    Serial Number                         : $serial
    GPU UUID                              : $uuid
    FB Memory Usage
        Total                             : {memory} MiB
        Reserved                          : 0 MiB
        Used                              : 0 MiB
        Free                              : {memory} MiB
    Processes                             : None
"
    done
}}

version() {{
    emit 'NVIDIA-SMI version  : {driver}
NVML version        : {nvml}
DRIVER version      : {driver}
CUDA Version        : {cuda}'
}}

usage() {{
    emit 'nvidia-smi of a pretended GPU. It knows -h, -L, -q, --version, -i, --query-gpu=,
--query-compute-apps= and --format=csv[,noheader][,nounits].'
}}

action=table query= format= chosen='{all}'
while [ $# -gt 0 ]; do
    option=$1
    shift
    case $option in
        --query-gpu=*|--query-compute-apps=*|--format=*|--id=*)
            name=${{option%%=*}} argument=${{option#*=}} ;;
        --query-gpu|--query-compute-apps|--format|--id|-i|-d|--display)
            name=$option argument=${{1-}}
            [ $# -eq 0 ] || shift ;;
        *) name=$option argument=none ;;
    esac
    [ -n "$argument" ] ||
        stop 2 "ERROR: Option $name is missing its value. Please run 'nvidia-smi -h' for help."
    case $name in
        -L|--list-gpus) action=list ;;
        -q|--query) action=report ;;
        -d|--display) ;;
        -h|--help) action=usage ;;
        --version) action=version ;;
        -i|--id) choose "$argument" ;;
        --query-gpu) action=query_gpu query=$argument ;;
        --query-compute-apps) action=query_apps query=$argument ;;
        --format) format=$argument ;;
        *) stop 2 "ERROR: Option $name is not recognized. Please run 'nvidia-smi -h' for help." ;;
    esac
done
$action
"""
