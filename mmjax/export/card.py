"""The model card of an exported folder."""

from __future__ import annotations

from typing import Any

from mmjax.export import describe
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.modalities.text import Text
from mmjax.run.view import View

__all__ = ["card"]

EXAMPLE = {Image: '["cat.png"]', Audio: '["cat.wav"]', Text: '["a cat"]'}


def card(view: View, title: str, parity: dict[str, Any]) -> str:
    """README.md with the front matter of the Hub."""
    experiment = view.program.experiment
    names = list(describe.exported(experiment))
    modalities = experiment.modalities
    parameters = sum(a.size for a in view.program.to_canonical(view.params).values())
    streams = "\n".join(f"| `{name}` | {_say(modalities[name])} |" for name in names)
    given = ", ".join(f"{name}={EXAMPLE[type(modalities[name])]}" for name in names[:2])
    pair = " @ ".join(
        f"outputs.{name}_embeds" + (".T" if i else "") for i, name in enumerate(names[:2])
    )
    tasks = "\n".join(
        f"| `{name}` | {type(task.objective).__name__} | {', '.join(task.inputs)}"
        f" | {', '.join(task.targets) or '-'} |"
        for name, task in experiment.tasks.items()
    )
    return f"""---
library_name: transformers
pipeline_tag: feature-extraction
tags: [mmjax, multimodal, contrastive, embeddings]
---

# {title}

The encoder of a transformer trained with [mmjax](https://github.com/mmjax/mmjax), and its
projections: {", ".join(names)} as unit vectors in one space. Higher products are closer meanings.

## Use

`pip install torch transformers safetensors numpy pillow soundfile scipy sentencepiece`

```python
import torch
from transformers import AutoModel, AutoProcessor

folder = "."  # this folder, or its name on the Hub
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    outputs = model(**processor({given}))
print({pair})
```

The code in this folder is PyTorch and NumPy; it needs neither mmjax nor JAX.

## Modalities

| name | takes |
|---|---|
{streams}

## Training

Run `{experiment.name}`, step {view.step:,} of {experiment.total_steps:,}, seed {experiment.seed};
{parameters:,} parameters in the whole model, of which this folder holds the encoder.

| task | objective | inputs | targets |
|---|---|---|---|
{tasks}

Intended use, data, limits and licence are for whoever publishes this folder to say.

## Parity

{_parity(parity)}
"""


def _say(modality: Modality) -> str:
    if isinstance(modality, Image):
        height, width = modality.size
        colour = {1: "gray", 3: "RGB"}.get(modality.channels, f"{modality.channels} channels")
        rule = {"stretch": "stretched", "crop": "cropped and scaled"}[modality.resize]
        return f"an image file, Pillow image or array; {colour}, {rule} to {height} x {width}"
    if isinstance(modality, Audio):
        return (
            f"a sound file, or a waveform at {modality.sample_rate} Hz, or at another rate that"
            f" `sampling_rate` says; the first {modality.seconds:g} s"
        )
    assert isinstance(modality, Text)
    return f"a string; the first {modality.max_tokens} tokens, the end token included"


def _parity(parity: dict[str, Any]) -> str:
    if not parity["verified"]:
        return "Not compared with mmjax; `mmjax export --verify` does that."
    rows = "\n".join(
        f"| `{name}` | {row['examples']} | {row['max_abs']:.2g} | {row['min_cosine']:.7f} |"
        for name, row in parity["modalities"].items()
    )
    return f"""Embeddings of validation files in transformers {parity["transformers"]} (torch
{parity["torch"]}) against mmjax {parity["mmjax"]} (jax {parity["jax"]}), float32 on CPU, from the
raw file on. `parity.json` has the same figures.

| modality | files | largest difference | least cosine |
|---|---|---|---|
{rows}"""
