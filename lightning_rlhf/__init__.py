"""Lightning RLHF: from human preferences to a signed-off report (Ziegler et al. 2019, in PyTorch Lightning)."""

__version__ = "0.1.0"
