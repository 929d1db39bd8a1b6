"""The reward model's layouts beside what a user would pick instead."""
