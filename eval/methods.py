"""How each figure of a report is computed, under the name that the page shows."""

METHODS = {
    "Win rate": (
        "Mean over pairs on the same prompt of 1 where the judge prefers the first policy, ½ where neither, else 0; of several "
        "verdicts on a pair their mean. Wilson's score interval with the prompt as cluster (Korn & Graubard 1998)."
    ),
    "p": (
        "Two-sided exact sign test over prompts (tied prompts dropped), then Holm's (1979) correction over the comparisons with "
        "a baseline that was asked for (all, where none was)."
    ),
    "Known and learned score": (
        "Mean per response of the truncated response's score, without the penalty, with a t interval by prompt; "
        "“learned” is the reward model that training optimised, “known” a reward from outside; where a "
        "policy was trained on it or picked by it, a warning says so."
    ),
    "KL": (
        "Mean over responses of Σ log π(token) − log π_ref(token) over the sampled tokens before "
        "truncation, in nats, under the policy that sampled them (Ziegler et al. 2019, arXiv "
        "1909.08593); where responses were drawn anew until they ended (redraws), of those that did."
    ),
    "No stop": (
        "Share of responses without the truncation token, which the task penalises (Ziegler et al. 2019); where such responses "
        "were drawn anew (redraws), of the first draws (best of n: of what was kept), while every other figure is of what was "
        "kept."
    ),
    "Length": ("Mean sampled tokens, and mean words (of any script), per response."),
    "Distinct-2 within": (
        "Mean over responses of different bigrams over all bigrams of that response: low where a "
        "response repeats itself."
    ),
    "Distinct-1/2/3": (
        "Different n-grams over all n-grams of all responses of a policy (Li et al. 2016, arXiv "
        "1510.03055): low where responses resemble each other; comparable only at equal numbers of "
        "responses."
    ),
    "Bigrams not in the prompt": (
        "Mean share of a response's bigrams that do not occur in its prompt (See et al. 2017, arXiv "
        "1704.04368): low where it copies."
    ),
    "ROUGE": (
        "F1 × 100 against the human reference, by the rouge-score package with stemming; several references: the best."
    ),
    "Copied sentences": (
        "Share of a response's sentences, of three words or more, whose words stand in that order in the source; marked "
        "in the samples: five or more words in a row."
    ),
    "Calibration": (
        "The predicted probability of a response is softmax of the scores of its comparison; of a pair only the favourite "
        "is drawn. Bins hold equally many; the calibration error is the mean distance of the bins from the diagonal "
        "(Guo et al. 2017, arXiv 1706.04599). The temperature is fitted on half of the prompts and tested on the others."
    ),
    "Over-optimisation": (
        "Begins where the running mean of the gold score (a tenth of the checkpoints, at least 3) is highest, if it ends lower "
        "by more than four standard errors, and the proxy's ends higher than there. The error is of running means that do not "
        "overlap, so that checkpoints may be alike from one to the next."
    ),
    "√KL": (
        "A least-squares line of the proxy against √KL over the checkpoints (Bai et al. 2022, arXiv 2204.05862, find it roughly "
        "linear); the bend is the t statistic of an added KL term."
    ),
    "Proxy and gold": (
        "Of a run: what it was trained on, as logged at its checkpoints, with the penalty for responses without a stop; and the "
        "reward that was held out of training. Of best of n: the learned and the known score, without the penalty; they are left "
        "out where the configs name other rewards than the run's."
    ),
    "Best of n": (
        "Expected score of the best of n by the learned score, over all sets of n of a prompt's samples; "
        "KL log n − (n−1)/n."
    ),
    "Disagreement": (
        "Mean over the other measures (known, learned, ROUGE-L) of the share of pairs of responses that they order "
        "differently from the judge."
    ),
    "Perplexity": (
        "exp(Σ −log p_ref / Σ tokens) of a policy's own responses under the reference at temperature 1:"
        " how surprising the reference finds them, not how good they are."
    ),
    "At equal length": (
        "A logistic regression of the outcomes on tanh(difference of the lengths in characters / its standard deviation), "
        "read at difference 0, with a Wald interval by prompt (after Dubois et al. 2024, arXiv 2404.04475)."
    ),
    "n to tell 60 %": (
        "How many prompts the sign test needs to find a win rate of 60 % with a power of 80 % at a level of 5 %, where as "
        "many are tied as here."
    ),
    "Bradley–Terry": (
        "Strengths θ, of mean 0, that fit P(a beats b) = 1 / (1 + exp(θ_b − θ_a)) to the pairs, a tie as half a win, with "
        "half a win and half a loss added to each pair of policies; intervals by prompt (Bradley & Terry 1952). Of scores all "
        "pairs of policies are taken, of verdicts those that were judged."
    ),
    "κ and α": (
        "Agreement of judges on who won a pair (one, the other, or a tie) beyond chance, 1 where they always agree and 0 at "
        "chance: Cohen's κ of two judges, Krippendorff's nominal α of any number; intervals by bootstrap over prompts."
    ),
    "Position bias": (
        "Of pairs that a judge judged in both orders: how often what stood first won, a tie counting half (50 % without "
        "bias), and how often the same response won in both."
    ),
    "Compression": "Words of the source over words of the response, the mean over responses that are not empty.",
    "Copied from": (
        "Where in the source the copied sentences stand, the mean over responses that have any: 0 is its beginning, 1 its "
        "end."
    ),
    "Repeated bigrams": "Mean share of a response's bigrams that occur in it more than once.",
    "n-grams not in the source": (
        "Mean share of a response's n-grams that do not occur in the source, the text that it is about, without what the task "
        "writes around it: low where it copies."
    ),
    "Refusals": "Share of responses whose first 200 characters hold a phrase of refusal, such as “as an AI language model”.",
    "Cut off": "Share of responses that are not empty and do not end as a sentence does, with a full stop or its like.",
    "Empty": "Share of responses that hold nothing but white space.",
    "Gain and bias": (
        "What the reward model's output is multiplied by and then shifted by, so that rewards of the reference's responses "
        "have the mean and the standard deviation that training asked for."
    ),
}


def as_markdown() -> str:
    """`docs/metrics.md`: `python -m eval.methods > docs/metrics.md`."""
    head = "# How each figure of a report is computed\n\nAs `eval/methods.py` has it and every report prints it.\n"
    return head + "".join(f"\n**{figure}.** {how}\n" for figure, how in METHODS.items())


if __name__ == "__main__":
    print(as_markdown(), end="")
