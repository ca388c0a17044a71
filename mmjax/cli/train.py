"""`mmjax train`: pretrain or fine-tune."""

from __future__ import annotations

from mmjax.cli import cpu, options

__all__ = ["parser", "run"]


def parser() -> options.Parser:
    """The command line; unknown options set fields of the config."""
    return options.training_parser("train", "Trains what CONFIG describes")


def run(args: list[str]) -> None:
    """Pretrain or fine-tune; the same workdir resumes."""
    experiment, workdir, code = options.training(parser(), args)
    from mmjax import train

    train.train(experiment, workdir, code=code, before_compile=cpu.compile_first, exit_if_hung=True)
