"""Make the bundled samples: spoken digits, WordNet glosses and clip art, for two days.

It needs espeak-ng, the WordNet database and the openclipart pictures: Debian's packages
espeak-ng, wordnet-base and openclipart-png.

    python tools/make_samples.py --wordnet WORDNET --clipart CLIPART/png samples
"""

import argparse
import subprocess
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

RATE = 8000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Voice, words per minute, pitch. Nobody who speaks on day 2 spoke on day 1.
VOICES = {
    "day1": (
        ("en-us", 190, 45),
        ("en-us+f2", 180, 60),
        ("en-us+m3", 210, 35),
        ("en-gb", 200, 50),
        ("en-gb+f3", 190, 65),
        ("en-gb-scotland", 200, 40),
        ("en-gb-x-rp+m7", 180, 45),
        ("en-us+Andrea", 200, 55),
        ("en-gb+adam", 190, 40),
    ),
    "day2": (("en-us+f1", 190, 55), ("en-gb-x-rp", 190, 45), ("en-us+m1", 200, 50)),
}
GLOSSES = {"day1": 400, "day2": 100}
PICTURES = {"day1": 14, "day2": 4}  # of each kind
KINDS = ("animals", "buildings", "plants")
SIDES = (24, 32, 40, 48, 56, 64)


def speak(word: str, voice: str, speed: int, pitch: int) -> NDArray[np.int16]:
    """One word as 8 kHz mono int16, without the silence around it."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(speed), "-p", str(pitch), word]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    # The header of a streamed WAV knows no length: 44 bytes, then mono int16 at 22,050 Hz.
    wave = np.frombuffer(spoken[44:], "<i2") / 32768
    length = round(len(wave) * RATE / 22050)
    spectrum = np.fft.rfft(wave)[: length // 2 + 1]
    wave = np.fft.irfft(spectrum, length) * (length / len(wave))
    loud = np.flatnonzero(np.abs(wave) > 0.01)
    wave = wave[loud[0] : loud[-1] + 1]
    # Nine bits with the sign keep the files small.
    small: NDArray[np.int16] = np.round(wave / np.abs(wave).max() * 255).astype(np.int16)
    return small


def make_speech(out: Path, day: str) -> None:
    for label, word in enumerate(DIGITS):
        folder = out / day / "speech" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        for voice, speed, pitch in VOICES[day]:
            path = folder / f"{voice.replace('+', '-').lower()}.flac"
            soundfile.write(path, speak(word, voice, speed, pitch), RATE)


def make_text(out: Path, wordnet: Path) -> None:
    glosses = []
    for part in ("adj", "adv", "noun", "verb"):
        for line in (wordnet / f"data.{part}").read_text("utf-8").splitlines():
            _, found, gloss = line.partition("| ")
            if found:
                glosses.append(gloss.strip())
    chosen = np.random.default_rng(0).permutation(len(glosses))
    for day, count in GLOSSES.items():
        folder = out / day / "text"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [glosses[i] for i in chosen[:count]]
        (folder / f"glosses-{day}.txt").write_text("\n".join(lines) + "\n", "utf-8")
        chosen = chosen[count:]


def make_images(out: Path, clipart: Path) -> None:
    for kind in KINDS:
        # Some pictures lie in two folders: one of each name.
        paths = list({path.name: path for path in sorted((clipart / kind).rglob("*.png"))}.values())
        chosen = np.random.default_rng(0).permutation(len(paths)).tolist()
        for day, count in PICTURES.items():
            folder = out / day / "images" / kind
            folder.mkdir(parents=True, exist_ok=True)
            for nth in range(count):
                path = paths[chosen.pop()]
                with Image.open(path) as drawn:
                    picture = drawn.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture).convert("RGB")
                side = SIDES[nth % len(SIDES)]
                picture.thumbnail((side, side))
                picture.quantize(24).convert("RGB").save(folder / path.name, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun")
    parser.add_argument("--clipart", type=Path, required=True, help="folder with animals/")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    for day in VOICES:
        make_speech(arguments.out, day)
    make_text(arguments.out, arguments.wordnet)
    make_images(arguments.out, arguments.clipart)


if __name__ == "__main__":
    main()
