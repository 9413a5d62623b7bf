"""The environment variables by which numerical libraries take their number of threads.

Each is one that its library reads and that makes an otherwise unlimited library, which takes all
CPUs, take fewer. What is not here: variables of libraries whose default is one thread (Stan,
pyFFTW, Julia, GDAL), since the worker's share may be more; those of threads that only wait for
input and output (``ARROW_IO_THREADS``, ``TOKIO_WORKER_THREADS``); and ``PJRT_NPROC`` of XLA (JAX),
which its source calls provisional, and whose callbacks have hung where its pool was small.
"""

from __future__ import annotations

import os

THREAD_VARIABLES = (
    # The OpenMP specification; also read by PyTorch and pyarrow (`pyarrow.cpu_count`).
    "OMP_NUM_THREADS",
    # OpenBLAS, README: setting the number of threads using environment variables
    "OPENBLAS_NUM_THREADS",
    # Intel oneMKL, developer guide: environment variables for threading control
    "MKL_NUM_THREADS",
    # BLIS, docs/Multithreading.md
    "BLIS_NUM_THREADS",
    # Apple's Accelerate, man page of the framework's libraries
    "VECLIB_MAXIMUM_THREADS",
    # NumExpr, user guide: threadpool configuration
    "NUMEXPR_NUM_THREADS",
    # Numba, reference manual: environment variables
    "NUMBA_NUM_THREADS",
    # Rayon, `ThreadPoolBuilder::num_threads`: Qiskit, Hugging Face's tokenizers
    "RAYON_NUM_THREADS",
    # Polars, `polars.thread_pool_size`: it has a Rayon pool of its own
    "POLARS_MAX_THREADS",
    # TensorFlow, core/common_runtime/process_util.cc
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    # OpenCV, environment variables reference: core/parallel_for
    "OPENCV_FOR_THREADS_NUM",
    # ITK and SimpleITK, example "Set the default number of threads"
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    # VTK, `vtkSMPTools::Initialize`
    "VTK_SMP_MAX_THREADS",
    # OpenMM, platforms/cpu/src/CpuPlatform.cpp
    "OPENMM_CPU_THREADS",
    # libvips, `vips_concurrency_get`
    "VIPS_CONCURRENCY",
)


def thread_settings(threads: int | None, share: int) -> dict[str, str]:
    """Return what to set in the environment of workers that have ``threads`` each.

    Where that is None they have their ``share`` of the CPUs, but where the environment of this
    process says something else.
    """
    if threads is not None:
        return dict.fromkeys(THREAD_VARIABLES, str(threads))
    return {name: str(share) for name in THREAD_VARIABLES if name not in os.environ}


__all__ = ["THREAD_VARIABLES", "thread_settings"]
