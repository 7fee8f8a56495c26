"""How far scores are from votes: the losses of preference learning, a value a vote."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Scores = Float[Tensor, "*heads 2 vote"]
Labels = Float[Tensor, "2 vote"]
Losses = Float[Tensor, "*heads vote"]


def soft_cross_entropy(scores: Scores, labels: Labels, log_ties: Float[Tensor, ""]) -> Losses:
    """Return `-sum_i label_i log softmax(scores)_i`; a tie's labels are one half each.

    Source: arXiv:2305.01569, eq. 2.
    """
    del log_ties
    return -(labels * scores.log_softmax(dim=-2)).sum(dim=-2)


def logistic(scores: Scores, labels: Labels, log_ties: Float[Tensor, ""]) -> Losses:
    """Return `-log sigmoid(better - worse)`; a tie costs nothing.

    Source: arXiv:2304.05977, eq. 1.
    """
    del log_ties
    sign = labels[0] - labels[1]
    return -F.logsigmoid(sign * (scores[..., 0, :] - scores[..., 1, :])) * sign.abs()


def davidson(scores: Scores, labels: Labels, log_ties: Float[Tensor, ""]) -> Losses:
    """Return the cross-entropy of three outcomes with odds `exp(s_0) : exp(s_1) : exp(log_ties + (s_0 + s_1) / 2)`.

    Source: Davidson 1970, doi:10.1080/01621459.1970.10481082, eq. 1.1.
    """
    tie = log_ties + scores.mean(dim=-2, keepdim=True)
    outcomes = torch.cat([scores, tie], dim=-2).log_softmax(dim=-2)
    tied = (labels[:1] == labels[1:]).to(labels.dtype)
    return -(torch.cat([labels * (1 - tied), tied]) * outcomes).sum(dim=-2)


LOSSES = {"soft": soft_cross_entropy, "logistic": logistic, "davidson": davidson}
