"""The three trainers of a round, on TRL: one function each.

Knows TRL, and how to run, resume and publish one training. Knows nothing of rounds or plans.

    from posttrain.training.sft import train_sft
"""
