"""Where compiled programs are kept: never in a workdir, and nowhere that others may write to."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
import types
from pathlib import Path

import pytest

import mmjax
from mmjax import config
from mmjax.processes import compile_cache

ROOT = Path(mmjax.__file__).parent.parent
VARIABLES = (compile_cache.FOLDER, compile_cache.LIMIT, compile_cache.SECONDS, compile_cache.BYTES)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A home of its own, no variables of jax, and a jax that only takes notes."""
    told = types.SimpleNamespace()
    told.config = types.SimpleNamespace(update=lambda name, value: setattr(told, name, value))
    monkeypatch.setitem(sys.modules, "jax", told)
    for name in (*VARIABLES, "XDG_CACHE_HOME", "JAX_PROCESS_ID"):
        monkeypatch.setenv(name, "x")  # so that it comes back as it was
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return told


def cache() -> str | None:
    return os.environ.get(compile_cache.FOLDER)


def test_the_place_is_the_users_own_folder(tmp_path, monkeypatch, alone, capsys):
    monkeypatch.chdir(tmp_path)
    compile_cache.use(workdir="runs/a")
    folder = tmp_path / "home" / ".cache" / "mmjax" / "compiled"
    assert cache() == str(folder)
    assert [stat.S_IMODE(f.stat().st_mode) for f in (folder, folder.parent)] == [0o700, 0o700]
    assert os.environ[compile_cache.LIMIT] == str(10 * 10**9)
    assert alone.jax_compilation_cache_dir == str(folder)
    assert alone.jax_compilation_cache_max_size == 10 * 10**9
    assert alone.jax_persistent_cache_min_compile_time_secs == 0.5
    assert capsys.readouterr() == ("", "")


def test_xdg_counts_when_it_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compile_cache.own_folder("compiled") == tmp_path / "xdg" / "mmjax" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
    home = tmp_path / "home" / ".cache" / "mmjax" / "compiled"
    assert compile_cache.own_folder("compiled") == home


def test_the_option_and_the_environment_win(tmp_path, monkeypatch, alone):
    monkeypatch.setenv(compile_cache.FOLDER, "gs://b/theirs")
    compile_cache.use()
    assert cache() == "gs://b/theirs"
    compile_cache.use("gs://b/shared")
    assert cache() == "gs://b/shared"
    monkeypatch.chdir(tmp_path)
    compile_cache.use("here")
    assert cache() == alone.jax_compilation_cache_dir == str(tmp_path / "here")
    assert compile_cache.LIMIT not in os.environ  # hosts that share it know nothing of a bound
    compile_cache.use("off")
    assert cache() is alone.jax_compilation_cache_dir is None
    assert not (tmp_path / "home" / ".cache").exists()
    with pytest.raises(config.ConfigError, match="--compile-cache is empty"):
        compile_cache.use("")


def told(capsys) -> str:
    """The line on stderr, when the environment is left without a cache."""
    compile_cache.use()
    assert cache() is None
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("mmjax: compiled programs are not kept: ")
    return err


@pytest.mark.fault("others may write to the cache of compiled programs", "no cache, one line")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720])
@pytest.mark.parametrize("which", ["mmjax", "mmjax/compiled"])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path, capsys, mode, which):
    place = tmp_path / "home" / ".cache" / which
    place.mkdir(parents=True)
    place.chmod(mode)
    assert f"other users may write to {place}" in told(capsys)
    place.chmod(0o755)
    compile_cache.use()
    assert cache()


@pytest.mark.fault("the cache folder belongs to another user", "no cache, one line")
def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "home" / ".cache" / "mmjax").mkdir(parents=True, mode=0o700)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert "belongs to another user" in told(capsys)


@pytest.mark.fault("the cache folder is a link to a folder of someone else", "no cache, one line")
def test_a_link_counts_as_what_it_leads_to(tmp_path, capsys):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "home" / ".cache").mkdir()
    (tmp_path / "home" / ".cache" / "mmjax").symlink_to(tmp_path / "open")
    assert "other users may write" in told(capsys)
    (tmp_path / "open").chmod(0o700)
    compile_cache.use()
    assert (tmp_path / "open" / "compiled").is_dir()


@pytest.mark.skipif(os.getuid() != 0, reason="gives a folder away")
def test_a_link_to_a_folder_of_another_user_is_refused(tmp_path, capsys):
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    (tmp_path / "home" / ".cache").mkdir()
    (tmp_path / "home" / ".cache" / "mmjax").symlink_to(tmp_path / "theirs")
    assert "belongs to another user" in told(capsys)


def test_a_cache_folder_for_everybody_is_fine_when_it_is_sticky(tmp_path, monkeypatch, capsys):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    assert f"other users may write to {shared}" in told(capsys)
    shared.chmod(0o1777)
    compile_cache.use()
    assert cache() == str(shared / "mmjax" / "compiled")


@pytest.mark.fault("there is no home folder, or it is read-only", "no cache, one line")
def test_no_home(tmp_path, monkeypatch, capsys):
    for home in (str(tmp_path / "absent"), "relative", "."):
        monkeypatch.setenv("HOME", home)
        assert "there is no home folder" in told(capsys)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    assert "there is no home folder" in told(capsys)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "cannot be made" in told(capsys)


def test_a_read_only_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "is read-only" in told(capsys)


def run(cwd: Path, home: Path, *args: str) -> subprocess.CompletedProcess:
    """`mmjax ARGS`, which fails after it has chosen a cache, and tells which."""
    file = cwd / "show.py"
    file.write_text(
        "import os\ndef get_config():\n"
        "    raise ValueError('cache ' + str(os.environ.get('JAX_COMPILATION_CACHE_DIR')))\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    env |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "mmjax", *args]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=60)
    assert done.returncode == 2, done.stderr
    return done


@pytest.mark.fault("a workdir holds compiled programs", "they are not used, one line says so")
def test_a_workdir_never_names_the_cache(tmp_path):
    (tmp_path / "run" / "compile_cache").mkdir(parents=True)
    done = run(tmp_path, tmp_path / "home", "train", "show.py", "--workdir", "run")
    assert f"cache {tmp_path}/home/.cache/mmjax/compiled" in done.stderr
    said = "mmjax: compile_cache in the workdir is no longer used; remove it (run/compile_cache)\n"
    assert done.stderr.count(said) == 1
    named = run(
        tmp_path, tmp_path / "home", *("train", "show.py", "--workdir", "run"),
        *("--compile-cache", "shared"),
    )  # fmt: skip
    assert f"cache {tmp_path}/shared" in named.stderr
    off = run(
        tmp_path, tmp_path / "home", *("train", "show.py", "--workdir", "other"),
        *("--compile-cache", "off"),
    )  # fmt: skip
    assert "cache None" in off.stderr
    assert off.stderr.count("\n") == 1


@pytest.mark.ci
@pytest.mark.fault("compiled programs fill the home folder", "the oldest are dropped at 10 GB")
def test_jax_keeps_the_bound(tmp_path):
    program = (
        "import sys; from mmjax.processes import compile_cache; compile_cache.use();"
        "import jax; x = jax.numpy.ones((8,));"
        "[jax.jit(lambda x, i=i: jax.numpy.sin(x * i))(x) for i in map(int, sys.argv[1:])]"
    )
    env = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    env |= {"HOME": str(tmp_path / "home"), "JAX_PLATFORMS": "cpu", compile_cache.SECONDS: "0"}
    folder = tmp_path / "home" / ".cache" / "mmjax" / "compiled"
    sizes, names = [], []
    for limit, numbers in ((10**9, "12345"), (12_000, "6789")):
        command = [sys.executable, "-W", "error", "-c", program, *numbers]
        env[compile_cache.LIMIT] = str(limit)
        subprocess.run(command, check=True, env=env, cwd=ROOT)
        names.append({f.name for f in folder.glob("*-cache")})
        sizes.append(sum(f.stat().st_size for f in folder.glob("*-cache")))
    assert sizes[0] > 12_000 >= sizes[1] > 0
    assert names[1] - names[0]
    assert names[0] - names[1]
