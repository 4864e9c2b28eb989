"""Folders of speech, text and images to stores, and samples of them back to files.

python examples/speech_text_images.py OUT
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

import raggedstore as rs

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def raggedstore(*arguments: str | Path) -> None:
    """Run the command, as a person would type it."""
    subprocess.run([sys.executable, "-m", "raggedstore", *map(str, arguments)], check=True)


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, kind in (("speech", "audio"), ("text", "text"), ("images", "image")):
        raggedstore("import", SAMPLES / "day1" / name, out / name, "--kind", kind)
        raggedstore("import", SAMPLES / "day2" / name, out / name, "--kind", kind, "--append")
        store = rs.open(out / name)
        print(f"{name}: {len(store)} samples, {store.nbytes:,} bytes as {store.nbytes_stored:,}")

    # And back: the last utterance and the last picture, as the files they came from.
    speech, text, images = (rs.open(out / name) for name in ("speech", "text", "images"))
    raggedstore("show", out / "speech", str(len(speech) - 1), "--save", out / "last.wav")
    raggedstore("show", out / "images", str(len(images) - 1), "--save", out / "last.png")

    spoken, rate = soundfile.read(out / "last.wav", dtype="int16")
    source, _ = soundfile.read(SAMPLES / "day2" / "speech" / speech["path"][-1], dtype="int16")
    if not np.array_equal(spoken, source):
        raise AssertionError("the utterance did not come back as it went in")
    with (
        Image.open(out / "last.png") as back,
        Image.open(SAMPLES / "day2" / "images" / images["path"][-1]) as drawn,
    ):
        if not np.array_equal(np.asarray(back), np.asarray(drawn)):
            raise AssertionError("the picture did not come back as it went in")
        print(f"the last picture, {images['path'][-1]}: {back.size[0]} × {back.size[1]}")
    print(f"the last utterance, {speech['path'][-1]}: {len(spoken) / rate:.2f} s")
    print(f"the last line of text: {text['text'][-1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "speech_text_images"))
