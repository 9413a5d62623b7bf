"""Modules that another thread is importing: they are in `sys.modules`, but still empty."""

from __future__ import annotations

from pathlib import Path

from helpers import expect


def test_half_imported_modules_are_taken_for_absent(tmp_path: Path) -> None:
    source = """
        import importlib.machinery, importlib.util, math, random, sys, threading, time

        import loky, multiprocessing.resource_tracker  # which import some of them
        from primitive_jobs import JobExecutor, JobPool

        NAMES = ["multiprocessing.spawn", "asyncio", "trio", "anyio", "numpy", "gevent.monkey",
                 "eventlet.patcher", "cloudpickle.cloudpickle"]
        gate = threading.Event()
        begun = threading.Semaphore(0)

        class Slow:
            # Its import begins, and goes on when the gate opens.
            def find_spec(self, name, path=None, target=None):
                return importlib.util.spec_from_loader(name, self) if name in NAMES else None
            def create_module(self, spec):
                return None
            def exec_module(self, module):
                begun.release()
                gate.wait()

        for name in ("gevent", "eventlet"):  # packages, empty and whole
            sys.modules[name] = package = type(sys)(name)
            package.__path__ = []
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.meta_path.insert(0, Slow())
        threads = [threading.Thread(target=__import__, args=[name]) for name in NAMES]
        for thread in threads:
            thread.start()
        for thread in threads:
            assert begun.acquire(timeout=20)
        assert all(not hasattr(sys.modules[name], "__all__") for name in NAMES)

        with JobPool(1, seed=1) as pool, JobExecutor(1) as executor:
            print(pool.submit(math.sqrt, 4).result(), list(pool.map(math.sqrt, [9, 16])))
            print(executor.submit(math.sqrt, 25).result())
            future = executor.submit(time.sleep, 1000)
            while not future.running():
                time.sleep(0.001)
            print(future.cancel())
            print(type(pool.submit(random.random).result()).__name__)
        gate.set()
        for thread in threads:
            thread.join()
    """
    expect(tmp_path, source, "2.0 [3.0, 4.0]\n5.0\nTrue\nfloat\n")
