"""How the tests of the applications start them and read what they print."""

import json
import random
import sys

import launch
from launch import mpirun

#: How ``--metrics`` splits the time of an epoch.
TIMES = {"compute", "waiting_for_values", "waiting_for_rounds", "waiting_for_meetings", "rest", "evaluation"}

NUM_TOPICS, TOPIC_WORDS = 8, 12


def run_app(name, ranks, *options, timeout=120, env=None):
    """Run ``python -m lapse.apps.<name>`` on some ranks."""
    args = ["-m", f"lapse.apps.{name}", *map(str, options)]
    return mpirun(ranks, args, timeout=timeout, env=env)


def start_app(name, ranks, *options):
    """Start the same, in a process group of its own, without waiting for its end."""
    return launch.start([launch.mpirun_command(), "-n", ranks, sys.executable, "-m", f"lapse.apps.{name}", *options])


def result_of(job):
    """What the ``RESULT`` line says; it is the last line of the output."""
    job.check()
    word, _, text = job.stdout.rstrip().splitlines()[-1].partition(" ")
    assert word == "RESULT", job.output
    return json.loads(text)


def write_topics(path, sentences=2000, seed=0):
    """A small world with a known answer: words of one topic stand together."""
    rng = random.Random(seed)
    with open(path, "w") as file:
        for _ in range(sentences):
            topic = rng.randrange(NUM_TOPICS)
            words = [f"t{topic}w{rng.randrange(TOPIC_WORDS)}" for _ in range(10)]
            file.write(" ".join(words) + "\n")
    return path


def write_languages(folder, people=120, seed=0):
    """A small graph with a known answer: a person lives in a city of a country, and speaks its language.

    Where a person lives is told in train; which languages some of them speak is for valid and test.
    """
    rng = random.Random(seed)
    cities = {f"city{c}": f"country{c % 4}" for c in range(8)}
    splits = {"train": [], "valid": [], "test": []}
    for city, country in cities.items():
        splits["train"].append((city, "in", country))
    for p in range(people):
        city = rng.choice(sorted(cities))
        splits["train"].append((f"person{p}", "lives_in", city))
        split = "train" if p % 4 else ("valid", "test")[p // 4 % 2]
        splits[split].append((f"person{p}", "speaks", cities[city].replace("country", "language")))
    folder.mkdir(parents=True, exist_ok=True)
    for name, triples in splits.items():
        rng.shuffle(triples)
        (folder / f"{name}.txt").write_text("".join("\t".join(triple) + "\n" for triple in triples))
    return folder
