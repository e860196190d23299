"""`python -m lightning_rlhf` is `lightning-rlhf`."""

from .cli import main

main()
