"""What a config would take on a described machine: `mmjax.plan(experiment, "v5e-16")`.

`chips` and `topology` know the machines, `model` estimates, `described` and `compiler` ask XLA,
`hlo` reads what it compiled, `flops` are those of `throughput/mfu`.
"""

from mmjax.plan.planning import Plan, Row, plan

__all__ = ["Plan", "Row", "plan"]
