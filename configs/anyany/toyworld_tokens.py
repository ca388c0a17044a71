"""Raw shards to tokens to a model that answers: pictures and captions of ToyWorld in files.

paper: Mizrahi et al. 2023, 4M: Massively Multimodal Masked Modeling (arXiv 2312.06647).
kept: all modalities are tokenized once, before training; masked modelling with budgets.
differs: two modalities, small; pictures come in as patches of pixels, too.
needs: anyany/toyworld_tokenizers
command: mmjax train configs/anyany/toyworld_tokens.py --workdir runs/toyworld_tokens_run
status: simplified

`python -m mmjax.demo.toyworld_shards --out runs/toyworld_shards` writes the raw shards, `mmjax
tokenize configs/anyany/toyworld_tokens.py:raw --out runs/toyworld_tokens` the tokens.
"""

from mmjax.data.layouts import Aligned, Masked, Policy
from mmjax.data.source import Source
from mmjax.data.task import Task
from mmjax.data.token_set import TokenSet
from mmjax.data.webdataset import WebDataset
from mmjax.evaluate import Losses
from mmjax.experiment import Experiment
from mmjax.modalities.codes import Codes
from mmjax.modalities.image import Image
from mmjax.modalities.text import Text
from mmjax.models import MoE, Transformer
from mmjax.objectives import InfoNCE, MaskedTokens
from mmjax.optim import Muon
from mmjax.tokenizers.sentencepiece import SentencePiece

SHARDS, TOKENS = "runs/toyworld_shards", "runs/toyworld_tokens"
TOKENIZER = "runs/toyworld_tokenizers/image"  # of toyworld_tokenizers.py:image
IMAGE = Image(size=(32, 32), patch=8)
POLICIES = (
    Policy(weight=0.3, input_alpha=0.5, target_alpha=0.5),
    Policy(weight=0.7, input_alpha=1.0, target_alpha=0.3, keep="all", one_input=True),
)


def get_config() -> Experiment:
    """The training, on tokens."""
    return of(TokenSet(path=TOKENS))


def raw() -> Experiment:
    """The same on the raw shards, which is what `mmjax tokenize` reads."""
    patterns = {split: f"{SHARDS}/{split}/*.tar" for split in ("train", "val")}
    return of(WebDataset(files=patterns, fields={"image": "png", "text": "txt"}))


def of(source: Source) -> Experiment:
    """One model of pictures and captions."""
    masked = Task(
        source=source,
        inputs=("text", "image", "tok_image"),
        targets=("text", "tok_image"),
        layout=Masked(input_tokens=64, target_tokens=64, policies=POLICIES),
        objective=MaskedTokens(),
        batch_size=64,
        group_rows=8,
        weight=4.0,
    )
    contrast = Task(
        source=source,
        inputs=("image", "text"),
        layout=Aligned(),
        objective=InfoNCE(),
        batch_size=128,
        group_rows=16,
    )
    return Experiment(
        name="toyworld_tokens",
        modalities={
            "text": Text(tokenizer=SentencePiece(vocab_size=400, num_sentinels=16), max_tokens=64),
            "image": IMAGE,
            "tok_image": Codes(base=IMAGE, field="image", path=TOKENIZER),
        },
        model=Transformer(
            width=128, num_heads=4, encoder_layers=4, decoder_layers=2, moe=MoE(num_experts=4)
        ),
        tasks={"masked": masked, "contrast": contrast},
        optimizer=Muon(),
        evaluators={"losses": Losses(tasks=("masked", "contrast"), num_batches=4)},
        total_steps=600,
    )
