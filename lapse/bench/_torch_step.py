"""ComplEx in PyTorch, a batch at a time: the same sampling, loss, penalties and optimizer as `lapse.apps.kge`.

PyTorch computes the forward and backward passes and AdaGrad's steps on the rows that a batch needs, each once. The step
is written without an embedding framework, and is not traced or compiled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

MASKED = -1e30


class Step:
    """Vectors and sums of squares in tensors, and a training step.

    Parameters
    ----------
    num_entities, num_relations
        Their numbers; each relation has an inverse, which predicts subjects.
    dim
        Length of the vectors: the real parts, then the imaginary parts.
    negatives
        Negative entities for each side of a batch, drawn uniformly and shared by its triples.
    rate, penalty
        Learning rate; weight of the cubed moduli (N3) of entities and relations.
    init_std, seed
        Of the initial vectors.
    """

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        *,
        dim: int,
        negatives: int,
        rate: float,
        penalty: float,
        init_std: float = 0.05,
        seed: int = 1,
    ) -> None:
        torch.manual_seed(seed)
        self.entities, self.relations = (init_std * torch.randn(n, dim) for n in (num_entities, 2 * num_relations))
        self._entity_squares, self._relation_squares = (torch.zeros_like(x) for x in (self.entities, self.relations))
        self._num_relations, self._negatives = num_relations, negatives
        self.rate, self._penalty = rate, penalty

    def train(self, triples: torch.Tensor) -> float:
        """Train a batch of triples, int64 of shape (n, 3); returns the sum of the losses of both sides."""
        n, k = len(triples), self._negatives
        subjects, relations, objects = triples.T
        sampled = torch.randint(len(self.entities), (2 * k,))
        keys, rows = torch.unique(torch.cat([subjects, objects, sampled]), return_inverse=True)
        relation_keys, relation_rows = torch.unique(
            torch.cat([relations, relations + self._num_relations]), return_inverse=True
        )
        e = self.entities[keys].requires_grad_()
        r = self.relations[relation_keys].requires_grad_()
        s, o, against_o, against_s = rows.split([n, n, k, k])
        direct, inverse = relation_rows.split(n)
        e_s, e_o = e[s], e[o]
        loss = self._loss(e_s, r[direct], e_o, e[against_o], o, against_o) + self._loss(
            e_o, r[inverse], e_s, e[against_s], s, against_s
        )
        total = loss + self._penalties(e, rows[: 2 * n]) + self._penalties(r, relation_rows)
        of_e, of_r = torch.autograd.grad(total, (e, r))
        self._adagrad(self.entities, self._entity_squares, keys, of_e)
        self._adagrad(self.relations, self._relation_squares, relation_keys, of_r)
        return loss.item()

    @staticmethod
    def queries(known: torch.Tensor, relation: torch.Tensor) -> torch.Tensor:
        """The vectors that entities are multiplied with: s r for the score Re <s, r, conj o>."""
        (a, b), (c, d) = known.chunk(2, 1), relation.chunk(2, 1)
        return torch.cat([a * c - b * d, a * d + b * c], 1)

    def _loss(self, known, relation, target, negatives, target_rows, negative_rows) -> torch.Tensor:
        """Cross-entropy of the targets against the negatives, those equal to a target left out for it."""
        queries = self.queries(known, relation)
        scores = (queries @ negatives.T).masked_fill(negative_rows == target_rows[:, None], MASKED)
        scores = torch.cat([(queries * target).sum(1, keepdim=True), scores], 1)
        return F.cross_entropy(scores, torch.zeros(len(queries), dtype=torch.long), reduction="sum")

    def _penalties(self, vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """|x|^3 over complex elements, as often as each row is used."""
        uses = torch.bincount(rows, minlength=len(vectors))
        a, b = vectors.chunk(2, 1)
        squares = a * a + b * b
        return self._penalty * (uses[:, None] * squares * (squares + 1e-30).sqrt()).sum()

    def _adagrad(self, values, squares, keys, gradient) -> None:
        sums = squares[keys].addcmul_(gradient, gradient)
        squares[keys] = sums
        values[keys] = values[keys].addcdiv_(gradient, sums.sqrt_().add_(1e-10), value=-self.rate)
