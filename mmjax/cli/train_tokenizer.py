"""`mmjax train-tokenizer`: codes for images, sounds or masks."""

from __future__ import annotations

from mmjax.cli import cpu, options

__all__ = ["parser", "run"]


def parser() -> options.Parser:
    """The command line; unknown options set fields of the config."""
    text = "Trains a tokenizer, and says how well its codes are used"
    return options.training_parser("train-tokenizer", text)


def run(args: list[str]) -> None:
    """Train codes for images, sounds or masks."""
    experiment, workdir, code = options.training(parser(), args)
    from mmjax import train_tokenizer

    report = train_tokenizer.train_tokenizer(
        experiment, workdir, code=code, before_compile=cpu.compile_first
    )
    print(train_tokenizer.text(report))
