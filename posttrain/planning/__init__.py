"""Which steps a plan has, and which reads which."""

from posttrain.planning.rounds import plan_steps

__all__ = ["plan_steps"]
