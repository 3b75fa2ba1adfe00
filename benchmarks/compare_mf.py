"""Compare the quality and time of matrix factorization with myFM and implicit, on the same split of the same ratings.

    python3 -m venv others
    others/bin/pip install myfm implicit scikit-learn 'setuptools<81'
    others/bin/python benchmarks/compare_mf.py --ratings u.data.gz --python .venv/bin/python

Ratings are lines "user item rating [...]", split by white space. The application holds out a tenth by its seed, and
writes which with ``--predictions``; the other programs then train on the rest. Times are seconds of CPU.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def run_application(python, ratings, seed, options):
    """The result, the held-out cells, and the CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "held_out.tsv")
        command = [python, "-m", "lapse.apps.mf", "--ratings", ratings, "--seed", str(seed), "--no-progress"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        command += [*options, "--predictions", path]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        result = json.loads(output.splitlines()[-1].removeprefix("RESULT "))
        return result, np.loadtxt(path, skiprows=1, usecols=(0, 1), dtype=np.int64), cpu


def split(ratings, held_out):
    """Training and held-out ratings of shape (n, 3)."""
    table = np.loadtxt(ratings, usecols=(0, 1, 2), dtype=np.int64)
    cells = set(map(tuple, held_out.tolist()))
    chosen = np.array([(user, item) in cells for user, item, _ in table.tolist()])
    return table[~chosen], table[chosen]


def train_myfm(training, held_out, seed):
    """RMSE and CPU time of Bayesian matrix factorization (rank 10, 200 draws) by myFM."""
    import myfm
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(handle_unknown="ignore").fit(training[:, :2])
    features, others = encoder.transform(training[:, :2]), encoder.transform(held_out[:, :2])
    begin = time.process_time()
    model = myfm.MyFMRegressor(rank=10, random_seed=seed)
    groups = [len(found) for found in encoder.categories_]
    model.fit(features, training[:, 2], n_iter=200, n_kept_samples=180, group_shapes=groups)
    predicted = np.clip(model.predict(others), training[:, 2].min(), training[:, 2].max())
    return float(np.sqrt(np.mean((held_out[:, 2] - predicted) ** 2))), time.process_time() - begin


def train_implicit(training, held_out, seed, alpha, is_binary):
    """NDCG@10 and CPU time of least squares for implicit feedback (32 factors, 15 iterations) by implicit."""
    import scipy.sparse
    from implicit.als import AlternatingLeastSquares
    from implicit.evaluation import ranking_metrics_at_k

    shape = tuple(np.concatenate([training, held_out])[:, :2].max(0) + 1)
    values = np.ones(len(training), np.float32) if is_binary else training[:, 2].astype(np.float32)
    matrix = scipy.sparse.csr_matrix((values, training[:, :2].T), shape)
    test = scipy.sparse.csr_matrix((np.ones(len(held_out), np.float32), held_out[:, :2].T), shape)
    begin = time.process_time()
    model = AlternatingLeastSquares(
        factors=32, regularization=1.0, alpha=alpha, iterations=15, random_state=seed, num_threads=1
    )
    model.fit(matrix, show_progress=False)
    cpu = time.process_time() - begin
    return float(ranking_metrics_at_k(model, matrix, test, K=10, show_progress=False)["ndcg"]), cpu


def train_implicit_bpr(training, held_out, seed):
    """NDCG@10 and CPU time of Bayesian personalized ranking (32 factors, 100 iterations) by implicit."""
    import scipy.sparse
    from implicit.bpr import BayesianPersonalizedRanking
    from implicit.evaluation import ranking_metrics_at_k

    shape = tuple(np.concatenate([training, held_out])[:, :2].max(0) + 1)
    matrix, test = (
        scipy.sparse.csr_matrix((np.ones(len(each), np.float32), each[:, :2].T), shape) for each in (training, held_out)
    )
    begin = time.process_time()
    model = BayesianPersonalizedRanking(
        factors=32, iterations=100, learning_rate=0.01, regularization=0.01, random_state=seed, num_threads=1
    )
    model.fit(matrix, show_progress=False)
    cpu = time.process_time() - begin
    return float(ranking_metrics_at_k(model, matrix, test, K=10, show_progress=False)["ndcg"]), cpu


def main():
    """Print a line for each program and seed."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # of myFM
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", required=True, help="such as u.data.gz of MovieLens 100k")
    parser.add_argument("--python", default=sys.executable, help="the Python that has Lapse (default: this one)")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated (default: %(default)s)")
    args = parser.parse_args()
    for seed in map(int, args.seeds.split(",")):
        for solver in ("sgd", "als", "gibbs"):
            result, cells, cpu = run_application(args.python, args.ratings, seed, ["--solver", solver])
            print(f"seed {seed}, rmse, --solver {solver}: {result['rmse']:.4f} ({cpu:.1f} s with start and evaluation)")
        training, held_out = split(args.ratings, cells)
        quality, cpu = train_myfm(training, held_out, seed)
        print(f"seed {seed}, rmse, myFM: {quality:.4f} ({cpu:.1f} s)")
        result, _, cpu = run_application(args.python, args.ratings, seed, ["--implicit"])
        print(f"seed {seed}, ndcg, --implicit: {result['ndcg']:.4f} ({cpu:.1f} s with start and evaluation)")
        for alpha, is_binary in ((1.0, False), (5.0, True)):
            quality, cpu = train_implicit(training, held_out, seed, alpha, is_binary)
            shown = f"alpha {alpha:g}{', all ratings 1' if is_binary else ''}"
            print(f"seed {seed}, ndcg, implicit, {shown}: {quality:.4f} ({cpu:.2f} s)")
        result, _, cpu = run_application(args.python, args.ratings, seed, ["--solver", "bpr"])
        print(f"seed {seed}, ndcg, --solver bpr: {result['ndcg']:.4f} ({cpu:.1f} s with start and evaluation)")
        quality, cpu = train_implicit_bpr(training, held_out, seed)
        print(f"seed {seed}, ndcg, implicit's BPR: {quality:.4f} ({cpu:.2f} s)")


if __name__ == "__main__":
    main()
