"""The list of targets. A target takes any bytes and raises if a promise is broken; seeds are good and bad examples."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """`module`.`function` of this package; `function`_seeds gives its seeds, `function`_words tokens to mix in.

    `native`: a C program instead. `ring`: the implementation that LIGHTLLM_MP_RING names; "c" has sanitizers.
    """

    name: str
    module: str
    function: str = ""
    longest: int = 1024
    """Most bytes of an input."""
    share: int = 1
    """Share of the time, relative to the other targets."""
    ring: str = "python"
    native: bool = False
    also: tuple[str, ...] = ()
    """Third-party packages whose branches guide the fuzzer too."""

    def test(self) -> Callable[[bytes], None]:
        """Imports the tested function."""
        found: Callable[[bytes], None] = self._part("")
        return found

    def seeds(self) -> list[bytes]:
        return list(self._part("_seeds")())

    def words(self) -> list[str]:
        """Words for the fuzzer's dictionary, if there are any."""
        return list(self._part("_words", list)())

    def _part(self, suffix: str, *default: Any) -> Any:
        module = importlib.import_module(f"tools.fuzz.{self.module}")
        return getattr(module, (self.function or self.name) + suffix, *default)


_ALL = (
    Target("ring_native", "lanes", "ring", longest=512, share=3, native=True),
    Target("ring_c", "lanes", "ring", longest=512, share=3, ring="c"),
    Target("ring_python", "lanes", "ring", longest=512, share=3),
    Target("channel", "peers", share=2),
    Target("message", "peers", share=2),
    Target("plan", "peers"),
    Target("body", "requests", longest=4096, share=4),
    Target("http", "requests", longest=4096, share=4, also=("aiohttp",)),
    Target("url", "requests", longest=256, also=("yarl",)),
    Target("image", "files", longest=2048),
    Target("gguf", "files", longest=2048),
    Target("safetensors", "files"),
    Target("sentencepiece", "files"),
    Target("tiktoken", "files"),
)
TARGETS = {target.name: target for target in _ALL}
