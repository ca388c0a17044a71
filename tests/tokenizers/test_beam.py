"""The units as a Beam pipeline; runs in the environment of `make setup-beam`."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import killing
import pytest
import toy_codes
import toy_set

from mmjax.config.error import ConfigError
from mmjax.tokenize import beam, run, whole

TWO = "--direct_running_mode=multi_processing --direct_num_workers=2"


@pytest.mark.beam
@pytest.mark.timeout(900)
def test_beam_killed_and_started_again_gives_the_same_bytes(tmp_path):
    raw = toy_set.write_tars(tmp_path / "raw")
    codes = toy_codes.write(tmp_path / "codes")
    run.tokenize(toy_set.get_config(str(raw), codes), tmp_path / "whole", shard_examples=2)
    out = tmp_path / "out"
    args, env = killing.command(raw, codes, out, "--shard-examples", "2", "--beam", TWO)
    killed = 0
    for seconds in (0.0, 2.0):  # once before a shard is there, once between shards
        with subprocess.Popen(
            args, env=env, start_new_session=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            wanted = "tokens/*/*.array_record" if seconds else "tokens/job.json"
            while process.poll() is None and not list(out.glob(wanted)):
                time.sleep(0.02)
            time.sleep(0.05 * seconds)
            killed += process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
    assert killed == 2
    assert whole.status(out)["parts"]["tokens"]["missing"]
    done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert killing.same_files(out, tmp_path / "whole")


def test_without_beam_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(ConfigError, match="make setup-beam installs it"):
        beam.tokenize(toy_set.get_config("raw", "codes"), tmp_path / "out")
