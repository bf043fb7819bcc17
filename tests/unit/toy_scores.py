"""Hold a small score table for the tests of figures and tables."""


def score(stage, loss, model="x", fold=None, split="test", views="AB+BA"):
    return {
        "stage": stage, "model": model, "fold": fold, "split": split, "views": views,
        "log_loss": loss, "log_loss_low": loss - 0.02, "log_loss_high": loss + 0.02,
        "swap_agreement": None if stage == "prior" else 0.9,
    }  # fmt: skip


SCORES = [
    score("final", 0.9),
    score("bayes", 0.8),
    score("teacher", 1.0, "llama", fold=0.0),
    score("teacher", 0.96, "llama"),
    score("teacher", 0.95, "mean"),
    score("teacher", 0.97, "mean", split="dev"),
    score("final", 0.9, split="test"),
    score("prior", 1.1),
]
