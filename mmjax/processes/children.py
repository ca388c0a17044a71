"""Child Python processes, which import the same modules from the same places as this one.

With `-c` and `-m` Python searches the working folder first, and would run a `random.py` there. So
children start isolated (`-I`) and get this process's search path.
"""

from __future__ import annotations

import os
import site
import sys

import mmjax
from mmjax.config.error import ConfigError

__all__ = ["command", "keep_out_the_working_folder", "refuse_compilers_here", "search_path"]

COMPILERS, FLAG = "cuda_sdk_lib", "--xla_gpu_cuda_data_dir"

# The package is loaded by its file, since another copy may be installed alongside a checkout. Site
# folders are processed for their .pth files; the paths that these add are in `path` already.
BEGIN = """\
import importlib.util, site, sys
for folder in {user_folders!r}: site.addsitedir(folder)
sys.path[:] = {path!r}
spec = importlib.util.spec_from_file_location("mmjax", {file!r})
sys.modules["mmjax"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["mmjax"])
"""


def command(program: str, *arguments: str) -> list[str]:
    """A command line that runs a program text, with unbuffered output."""
    user_folders = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    begin = BEGIN.format(user_folders=user_folders, path=search_path(), file=mmjax.__file__)
    flags = ["-I", "-u", *(["-B"] if sys.dont_write_bytecode else [])]
    return [sys.executable, *flags, "-c", begin + program, *arguments]


def search_path() -> list[str]:
    """`sys.path` of this process, as absolute paths. If Python put the working folder first, it
    comes last here, so that its modules can be imported but shadow nothing."""
    here, first = os.getcwd(), sys.path[0] if sys.path else None
    started_as_module = getattr(sys.modules["__main__"], "__spec__", None) is not None
    implicit = started_as_module and not sys.flags.safe_path and first == here
    explicit = [p for p in (sys.path[1:] if implicit else sys.path) if p]
    last = [here] if implicit or "" in sys.path else []
    return list(dict.fromkeys([*map(os.path.abspath, explicit), *last]))


def keep_out_the_working_folder() -> None:
    """Applies to all child Python processes, such as data workers."""
    os.environ["PYTHONSAFEPATH"] = "1"


def refuse_compilers_here() -> None:
    """Raises ConfigError if XLA would take the working folder for the CUDA toolkit, and run its
    programs (`bin/ptxas`)."""
    if os.path.exists(COMPILERS) and FLAG not in os.environ.get("XLA_FLAGS", ""):
        raise ConfigError(
            f"The working folder holds {COMPILERS!r}, whose compilers XLA would run; start"
            f" somewhere else, or name the toolkit that you mean by XLA_FLAGS={FLAG}=FOLDER."
        )
