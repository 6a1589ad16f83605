"""The command `lightllm-mp pull`: downloads a model into a folder that `serve` can read."""

from __future__ import annotations

import fnmatch
import glob
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightllm_mp.cli.flags.parser import Parser, parse
from lightllm_mp.cli.safe_text import printable
from lightllm_mp.errors import ConfigError, ModelError
from lightllm_mp.machine import format_bytes
from lightllm_mp.model_files.default_model import OFFLINE, REPOSITORY, find_default_model, is_offline

DESCRIPTION = """\
Download a model and print its folder. Without a name: the default model. ORG/NAME is a repository of a Hugging Face
hub; only the files that are served are taken (safetensors rather than .bin; of several GGUF files those of --include),
into the hub's own cache. HF_TOKEN, HF_ENDPOINT, HF_HOME and the hub's other variables count."""
DESCRIBING = ("*.json", "*.txt", "*.model", "*.vocab", "*.tiktoken", "*.jinja", "LICENSE*")
"""Patterns of files beside the weights, at the top of the repository."""
DEEPER = ("additional_chat_templates/*.jinja", "[0-9]_*/config.json")
WEIGHTS = (("model*.safetensors", "*.safetensors"), ("pytorch_model*.bin", "*.bin"))
"""Patterns of weights in the loader's order of preference. Of each kind: the usual names, else a single file."""

Sizes = dict[str, int]
"""Files of a repository: path -> bytes."""


def parser() -> Parser:
    found = Parser(prog="lightllm-mp pull", description=DESCRIPTION, allow_abbrev=False)
    found.add_argument("model", nargs="?", metavar="ORG/NAME", help="repository, also as hf:ORG/NAME")
    found.add_argument("--revision", metavar="REV", help="branch, tag or commit; by default main")
    found.add_argument(
        "--include", nargs="+", action="extend", metavar="PATTERN", help="weight files to take, as '*Q4_K_M.gguf'"
    )
    return found


def main(argv: Sequence[str]) -> int:
    """Print the folder and how to serve it. ConfigError for wrong flags, ModelError if the download is impossible."""
    args = parse(parser(), argv)
    if args.model is None:
        print(f"{find_default_model()}\nserve it: lightllm-mp serve")
        return 0
    name = args.model.removeprefix("hf:")
    if not REPOSITORY.fullmatch(name):
        raise ConfigError(f"{args.model}: expected ORG/NAME, the name of a repository on a hub")
    path = pull(name, args.revision, args.include or [])
    print(f"{path}\nserve it: lightllm-mp serve --model-dir {path}")
    return 0


def pull(name: str, revision: str | None, include: Sequence[str]) -> Path:
    """The folder, or the GGUF file, of a repository. Files that the hub's cache lacks are downloaded."""
    if is_offline():
        raise ModelError(f"{name} is not fetched: {OFFLINE} is set")
    try:
        import huggingface_hub as hub
    except ImportError:
        remedy = f"run: {Path(sys.executable).name} -m pip install huggingface_hub"
        raise ModelError(f"{name} cannot be fetched: huggingface_hub is not installed; {remedy}") from None
    info = _asked(name, lambda: hub.HfApi().model_info(name, revision=revision, files_metadata=True))
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    files = choose(name, sizes, include)
    total = sum(sizes[file] for file in files)
    cache = Path(hub.constants.HF_HUB_CACHE)
    _check_room(cache, total)
    print(f"{name}: {len(files)} files, {format_bytes(total)}, into {cache}", file=sys.stderr)
    patterns = [glob.escape(file) for file in files]
    folder = _asked(name, lambda: hub.snapshot_download(name, revision=info.sha, allow_patterns=patterns))
    ggufs = [file for file in files if file.endswith(".gguf") and "mmproj" not in file]
    return Path(folder) / ggufs[0] if ggufs else Path(folder)


def _asked(name: str, ask: Any) -> Any:
    """The hub's answer. ModelError with the reason if there is none."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    try:
        return ask()
    except errors.GatedRepoError:
        raise ModelError(f"{name}: accept its terms at {hub}/{name}, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(f"{name}: {hub} has no such repository; if it is private, set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{name}: the repository has no such --revision") from None
    except errors.HfHubHTTPError as error:
        raise ModelError(f"{name}: {hub} refuses it ({_first_line(error)})") from None
    except Exception as error:  # the HTTP client's errors differ between versions of the library
        remedy = "copy the model's folder here and name it with --model-dir"
        raise ModelError(f"{name}: {hub} cannot be reached ({_first_line(error)}); {remedy}") from None


def _first_line(error: Exception) -> str:
    return printable(next(iter(str(error).splitlines()), type(error).__name__))[:200]


def _check_room(cache: Path, wanted: int) -> None:
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if (free := shutil.disk_usage(there).free) < wanted:
        text = f"{there} has {format_bytes(free)} left, the model takes {format_bytes(wanted)}"
        raise ModelError(f"{text}; set HF_HOME to a folder with more room")


def choose(name: str, sizes: Sizes, include: Sequence[str]) -> list[str]:
    """The files to download. ModelError if there are no weights, or if the user has to choose among GGUF files."""
    weights = _matching(sizes, include) if include else _weights(sizes)
    if include and not weights:
        raise ModelError(f"{name}: no file matches {' or '.join(include)}; it has {_listed(sizes, sizes)}")
    if not weights:
        ggufs = _matching(sizes, ["*.gguf"])
        if len(ggufs) != 1:
            kinds = "several GGUF files: choose with --include" if ggufs else "no safetensors, .bin or GGUF files"
            raise ModelError(f"{name} has {kinds}; {_listed(ggufs or sizes, sizes)}")
        weights = ggufs
    if all(file.endswith(".gguf") for file in weights):
        return weights
    beside = _matching([file for file in sizes if "/" not in file], DESCRIBING) + _matching(sizes, DEEPER)
    stems = {file.rsplit(".", 1)[-1] for file in weights}
    return sorted({*weights, *(file for file in beside if _index_of(file) in (None, *stems))})


def _weights(sizes: Sizes) -> list[str]:
    top = [file for file in sizes if "/" not in file]
    for known, kind in WEIGHTS:
        if found := _matching(top, [known]):
            return found
        if len(found := _matching(top, [kind])) == 1:
            return found
    return []


def _index_of(file: str) -> str | None:
    """The kind of weights that an index lists: `bin` for pytorch_model.bin.index.json."""
    found = re.search(r"\.(\w+)\.index\.json$", file)
    return found[1] if found else None


def _matching(files: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return sorted(file for file in files if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns))


def _listed(files: Iterable[str], sizes: Sizes) -> str:
    shown = [f"{printable(file)} ({format_bytes(sizes[file])})" for file in sorted(files)]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "") or "nothing"
