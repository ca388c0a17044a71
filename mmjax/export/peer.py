"""Run as a script, never imported: embeds files with an exported folder, as its users will.

    python -P peer.py FOLDER WORK

WORK/request.json is {stream: [file]}; writes WORK/embeddings.npz and WORK/loading.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


class Absent:
    """Makes imports of mmjax and jax fail, to prove that the folder needs neither."""

    def find_spec(self, name, path=None, target=None):
        del path, target
        if name.split(".")[0] in ("mmjax", "jax", "flax"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def main(folder: str, work: Path) -> None:
    import numpy as np
    import torch
    import transformers

    model, info = transformers.AutoModel.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model.eval()
    embeddings = {}
    for stream, files in json.loads((work / "request.json").read_text()).items():
        values = [Path(f).read_bytes().decode() if f.endswith(".txt") else f for f in files]
        with torch.no_grad():
            outputs = model(**processor(**{stream: values}))
        embeddings[stream] = outputs[f"{stream}_embeds"].float().numpy()
    np.savez(work / "embeddings.npz", **embeddings)
    weights = {
        kind: sorted(map(str, info[f"{kind}_keys"]))
        for kind in ("missing", "unexpected", "mismatched")
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (work / "loading.json").write_text(json.dumps({"weights": weights, **versions}))


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())  # type: ignore[arg-type]
    main(sys.argv[1], Path(sys.argv[2]))
