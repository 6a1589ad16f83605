"""Runs one target under atheris: `python -m tools.fuzz.child TARGET EXTENSION [libFuzzer's options and corpora]`.

EXTENSION is a build of _ring.c, or - for none. Without libFuzzer's -runs or -max_total_time it goes on until it finds
something. Given files in place of corpora, it runs each of them once.
"""

from __future__ import annotations

import importlib.util
import resource
import sys
import time
from collections.abc import Callable

import atheris

from tools.fuzz.features import instrument
from tools.fuzz.targets import TARGETS

ADDRESS_SPACE = 4 << 30
"""Bytes; libFuzzer checks its own limit only now and then."""


def use(path: str) -> None:
    """Makes a build of _ring.c the extension of this process."""
    spec = importlib.util.spec_from_file_location("lightllm_mp.shm._ring", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = module


def timed(test: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Prints when an input took more CPU time than all before."""
    slowest = 0.0

    def run(data: bytes) -> None:
        nonlocal slowest
        begin = time.process_time()
        test(data)
        took = time.process_time() - begin
        if took > slowest:
            slowest = took
            print(f"slowest input so far: {took * 1e6:.0f} us", file=sys.stderr, flush=True)

    return run


def fuzz_target() -> None:
    name, extension, *options = sys.argv[1:]
    if extension == "-":
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    else:  # AddressSanitizer's shadow is larger than any limit
        use(extension)
    target = TARGETS[name]
    with atheris.instrument_imports(include=["lightllm_mp", "tools.fuzz", *target.also]):
        test, seeds = target.test(), target.seeds()
    instrument(atheris.instrument_func)
    for seed in seeds:  # work that happens once (caches, lazy imports) is no feature of the first input
        test(seed)
    atheris.Setup([sys.argv[0], *options], timed(test))
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz_target()
