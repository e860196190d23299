"""Evaluation of policies; it shadows the builtin `eval`, so write `from eval.rouge import …`."""
