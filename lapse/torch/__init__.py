"""Floor 6. Tables of a server as modules of PyTorch: they stand where `torch.nn.Embedding` and `EmbeddingBag` do.

Needs PyTorch, ``pip install 'lapse[torch]'``; ``import lapse`` alone never imports it. `docs/pytorch.md` leads from a
program in PyTorch to one with a server.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"lapse.torch needs PyTorch, which cannot be imported ({error}): pip install 'lapse[torch]'"
    ) from error

from lapse.torch.dense import Dense
from lapse.torch.embedding import Embedding
from lapse.torch.embedding_bag import EmbeddingBag
from lapse.torch.gradients import flush, no_sync
from lapse.torch.prefetcher import Prefetcher

__all__ = ["Dense", "Embedding", "EmbeddingBag", "Prefetcher", "flush", "no_sync"]
