"""Make the corpora that the benchmarks run on, out of packages of Debian.

    python benchmarks/make_corpora.py FOLDER [speech tokens image text]

Real data of four kinds, downloaded by apt-get and unpacked by dpkg (nothing is installed), each
as FOLDER/<name>.npz with `values` (all samples flattened), `offsets` (n + 1) and, for images,
`shapes` (n, 3):

    speech   2,831 telephone prompts in five languages, 8 kHz int16, 126 MB
    tokens   117,659 dictionary glosses as word ids, uint16, most frequent first, 3.4 MB
    image    6,843 icons and clip-art pictures of every size, uint8 (h, w, 3), 300 MB
    text     the glosses as UTF-8 bytes, 9 MB

Needs pillow for the images.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.corpora import Corpus

PACKAGES = {
    "speech": [
        f"asterisk-core-sounds-{language}-wav" for language in ("en", "es", "fr", "it", "ru")
    ],
    "tokens": ["wordnet-base"],
    "image": ["openclipart-png", "oxygen-icon-theme"],
    "text": ["wordnet-base"],
}

IMAGE_BYTES = 300_000_000  # of pixels; then it is enough
IMAGE_PIXELS = 360_000  # pictures larger than this are scaled into 400 × 400

Samples = list[npt.NDArray[Any]]


def unpack(packages: list[str], folder: Path) -> Path:
    """Download and unpack packages under `folder`; returns the root they were unpacked to."""
    downloads, root = folder / "packages", folder / "unpacked"
    downloads.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["apt-cache", "show", packages[0]], capture_output=True).returncode:
        subprocess.run(["apt-get", "update", "--quiet"], check=True)
    for package in packages:
        if not any(downloads.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "--quiet", package], cwd=downloads, check=True)
        archive = next(downloads.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "--extract", str(archive), str(root)], check=True)
    return root


def speech(root: Path) -> Samples:
    """Every prompt's samples."""
    prompts = []
    for path in sorted((root / "usr/share/asterisk").rglob("*.wav")):
        with wave.open(str(path)) as file:
            prompts.append(np.frombuffer(file.readframes(file.getnframes()), "<i2"))
    return prompts


def glosses(root: Path) -> Iterator[str]:
    """The glosses of the dictionary, in its own order."""
    for path in sorted((root / "usr/share/wordnet").glob("data.*")):
        with open(path, encoding="latin1") as lines:
            yield from (line.split("|", 1)[1].strip() for line in lines if "|" in line)


def text(root: Path) -> Samples:
    """Every gloss as bytes."""
    return [np.frombuffer(gloss.encode(), np.uint8) for gloss in glosses(root)]


def tokens(root: Path) -> Samples:
    """Every gloss as the ranks of its words and punctuation marks."""
    rows = [re.findall(r"\w+|[^\w\s]", gloss) for gloss in glosses(root)]
    counts = Counter(word for row in rows for word in row)
    rank = {word: i for i, (word, _) in enumerate(counts.most_common())}
    return [np.array([rank[word] for word in row], np.uint16) for row in rows]


def image(root: Path) -> Samples:
    """Pictures as (h, w, 3), until there are enough of them."""
    from PIL import Image

    pictures: Samples = []
    left = IMAGE_BYTES
    for path in sorted(root.rglob("*.png")):
        if path.is_symlink() or left < 0:
            continue
        try:
            picture: Any = Image.open(path)
            picture.load()
        except (OSError, ValueError, SyntaxError):
            continue  # a few are damaged or too large for Pillow's liking
        if picture.size[0] * picture.size[1] > IMAGE_PIXELS:
            picture.thumbnail((400, 400))
        pictures.append(np.asarray(picture.convert("RGB")))
        left -= pictures[-1].nbytes
    return pictures


MAKERS: dict[str, Callable[[Path], Samples]] = {
    "speech": speech,
    "tokens": tokens,
    "image": image,
    "text": text,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MAKERS))
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(MAKERS)):
        parser.error(f"no such corpus: {', '.join(unknown)}")
    folder = options.folder.resolve()
    for name in options.names or MAKERS:
        # A root for each set of packages: images are whatever lies anywhere below theirs.
        root = unpack(PACKAGES[name], folder / "debian" / PACKAGES[name][0])
        corpus = Corpus.of(name, MAKERS[name](root))
        corpus.save(folder)
        print(f"{name}: {len(corpus):,} samples, {corpus.nbytes / 1e6:.1f} MB {corpus.dtype}")


if __name__ == "__main__":
    main()
