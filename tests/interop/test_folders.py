"""Folders of files become samples: equal to what soundfile, pillow and the lines give."""

import errno
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile

import raggedstore as rs
from raggedstore.interop import folders
from raggedstore.interop.folders import Watcher, import_folder
from raggedstore.interop.scan import find_files

rng = np.random.default_rng(0)


def write_sound(path, *, frames=100, channels=1, subtype="PCM_16", rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = rng.uniform(-1, 1, (frames, channels))
    soundfile.write(path, values, rate, subtype=subtype)
    return path


def write_picture(path, *, mode="RGB", size=(7, 5), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = {"RGB": 3, "RGBA": 4, "L": 1, "P": 1, "LA": 2}[mode]
    shape = (size[1], size[0]) if bands == 1 else (size[1], size[0], bands)
    values = rng.integers(0, 256, shape, np.uint8)
    if mode == "P":
        picture = PIL.Image.fromarray(values).convert("P")
    else:
        picture = PIL.Image.fromarray(values, mode=None)
    picture.save(path, **options)
    return path


def names(report):
    return [skipped.name for skipped in report.skipped]


def test_sounds_come_back_as_soundfile_reads_them_with_path_rate_and_label(tmp_path):
    root = tmp_path / "in"
    lengths = {"b/two.flac": 31, "a/one.wav": 0, "c/d/three.WAV": 1000, "top.wav": 7}
    for i, (name, frames) in enumerate(lengths.items()):
        write_sound(root / name, frames=frames, rate=8000 + i)

    report = import_folder(root, tmp_path / "corpus")

    store = rs.open(tmp_path / "corpus")
    assert store.schema["audio"] == rs.Field("int16", (None,))
    assert [s["path"] for s in store] == sorted(lengths)
    assert [s["label"] for s in store] == ["a", "b", "c/d", ""]
    for sample in store:
        values, rate = soundfile.read(root / sample["path"], dtype="int16")
        np.testing.assert_array_equal(sample["audio"], values)
        assert sample["sample_rate"] == rate
    assert (report.files, report.samples, report.skipped) == (4, 4, [])


def test_a_flat_folder_has_no_label(tmp_path):
    write_sound(tmp_path / "in" / "one.wav")
    import_folder(tmp_path / "in", tmp_path / "corpus")
    assert list(rs.open(tmp_path / "corpus").schema) == ["audio", "path", "sample_rate"]


@pytest.mark.parametrize(
    ("subtypes", "dtype"),
    [
        (["PCM_U8"], "int16"),
        (["ULAW", "PCM_16"], "int16"),
        (["PCM_16", "PCM_24"], "int32"),
        (["PCM_32"], "int32"),
        (["FLOAT", "PCM_24"], "float32"),
        (["FLOAT", "PCM_32"], "float64"),
        (["DOUBLE", "PCM_16"], "float64"),
    ],
)
def test_the_dtype_holds_every_subtype_without_loss(tmp_path, subtypes, dtype):
    for subtype in subtypes:
        write_sound(tmp_path / "in" / f"{subtype}.wav", subtype=subtype)
    import_folder(tmp_path / "in", tmp_path / "corpus")
    store = rs.open(tmp_path / "corpus")
    assert store.schema["audio"].dtype == dtype
    for sample in store:
        path = tmp_path / "in" / sample["path"]
        np.testing.assert_array_equal(sample["audio"], soundfile.read(path, dtype=dtype)[0])
        exact, _ = soundfile.read(path, dtype="float64")
        scale = 1 if dtype.startswith("float") else np.iinfo(dtype).max + 1.0
        np.testing.assert_array_equal(sample["audio"] / scale, exact)


@pytest.mark.parametrize(
    ("channels", "shape"), [([2, 2], (None, 2)), ([1, 2, 5], (None, None)), ([1], (None,))]
)
def test_channels_decide_the_shape(tmp_path, channels, shape):
    for i, count in enumerate(channels):
        write_sound(tmp_path / "in" / f"{i}.wav", channels=count, frames=i + 3)
    import_folder(tmp_path / "in", tmp_path / "corpus")
    store = rs.open(tmp_path / "corpus")
    assert store.schema["audio"].shape == shape
    for i, sample in enumerate(store):
        values, _ = soundfile.read(
            tmp_path / "in" / f"{i}.wav", dtype="int16", always_2d=len(shape) == 2
        )
        np.testing.assert_array_equal(sample["audio"], values)


def test_unreadable_sounds_are_named_and_skipped(tmp_path):
    root = tmp_path / "in"
    write_sound(root / "good.wav")
    (root / "empty.wav").touch()
    (root / "noise.flac").write_bytes(rng.bytes(500))
    whole = write_sound(root / "cut.flac", frames=20_000).read_bytes()
    (root / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (root / "dangling.wav").symlink_to(root / "nowhere.wav")
    os.mkfifo(root / "pipe.wav")
    (root / "notes.txt").write_text("left alone")

    report = import_folder(root, tmp_path / "corpus", kind="audio")

    assert sorted(names(report)) == ["cut.flac", "dangling.wav", "empty.wav", "noise.flac",
                                     "pipe.wav"]  # fmt: skip
    assert all(skipped.reason and str(root) not in skipped.reason for skipped in report.skipped)
    assert [s["path"] for s in rs.open(tmp_path / "corpus")] == ["good.wav"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pictures_come_back_as_pillow_converts_them(tmp_path, mode):
    root = tmp_path / "in"
    write_picture(root / "a.png")
    write_picture(root / "b.png", mode="RGBA", size=(1, 9))
    write_picture(root / "x" / "c.jpg", mode="L", size=(30, 20))
    write_picture(root / "x" / "d.webp", size=(16, 16))
    write_picture(root / "x" / "e.gif", mode="P")
    write_picture(root / "x" / "f.png", mode="LA")
    write_picture(root / "x" / "g.tiff")

    report = import_folder(root, tmp_path / "corpus", mode=mode)

    store = rs.open(tmp_path / "corpus")
    assert report.kind == "image" and len(store) == 7
    for sample in store:
        with PIL.Image.open(root / sample["path"]) as picture:
            np.testing.assert_array_equal(sample["image"], np.asarray(picture.convert(mode)))


def test_broken_and_gigantic_pictures_are_skipped(tmp_path, monkeypatch):
    root = tmp_path / "in"
    write_picture(root / "good.png", size=(10, 10))
    write_picture(root / "bomb.png", size=(300, 300))
    whole = write_picture(root / "cut.png", size=(50, 50)).read_bytes()
    (root / "cut.png").write_bytes(whole[:-2000])
    (root / "text.jpg").write_text("no picture")
    (root / "eps.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10_000)
    report = import_folder(root, tmp_path / "corpus")
    assert sorted(names(report)) == ["bomb.png", "cut.png", "eps.png", "text.jpg"]
    assert [s["path"] for s in rs.open(tmp_path / "corpus")] == ["good.png"]


LINES = ["first", "", "  spaced \t", "über ✓ \u2028 \x0b \x0c", "lone \r inside", "\ufefflast"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("closed", [True, False])
def test_lines_come_back_without_their_ends_and_otherwise_whole(tmp_path, end, closed):
    root = tmp_path / "in"
    root.mkdir()
    content = end.join(LINES) + (end if closed else "")
    (root / "a.txt").write_bytes(content.encode())
    (root / "b.txt").touch()
    import_folder(root, tmp_path / "corpus")
    store = rs.open(tmp_path / "corpus")
    assert [s["text"] for s in store] == LINES
    assert [s["line"] for s in store] == list(range(1, len(LINES) + 1))
    assert {s["path"] for s in store} == {"a.txt"}


def test_many_lines_come_in_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.text, "_BLOCK_LINES", 7)
    monkeypatch.setattr(folders.text, "_PIECE_BYTES", 5)  # cuts characters in two
    lines = [f"{'é€𝄞' * (i % 5)}{i}" for i in range(100)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    report = import_folder(tmp_path / "a.txt", tmp_path / "corpus", commit_every=50)
    assert rs.open(tmp_path / "corpus")["text"][:] == lines
    assert report.version > 10


def test_text_by_file_keeps_every_byte(tmp_path):
    root = tmp_path / "in"
    (root / "pos").mkdir(parents=True)
    (root / "pos" / "1.txt").write_bytes(b"one\r\ntwo\n\n")
    (root / "pos" / "2.txt").write_bytes(b"")
    import_folder(root, tmp_path / "corpus", per="file")
    store = rs.open(tmp_path / "corpus")
    assert store[0] == {"text": "one\r\ntwo\n\n", "path": "pos/1.txt", "label": "pos"}
    assert store[1]["text"] == "" and len(store) == 2


@pytest.mark.parametrize("per", ["line", "file"])
def test_text_that_is_not_utf8_is_skipped_whole(tmp_path, per):
    root = tmp_path / "in"
    root.mkdir()
    (root / "bad.txt").write_bytes(b"fine\n" * 10 + b"\xff\xfe\n")
    (root / "cut.txt").write_bytes("fine\né".encode()[:-1])
    (root / "good.txt").write_bytes(b"fine\n")
    report = import_folder(root, tmp_path / "corpus", per=per)
    assert names(report) == ["bad.txt", "cut.txt"]
    assert "at byte 50" in report.skipped[0].reason
    assert {s["path"] for s in rs.open(tmp_path / "corpus")} == {"good.txt"}


def test_append_takes_what_is_new_and_nothing_twice(tmp_path):
    root, corpus = tmp_path / "in", tmp_path / "corpus"
    write_sound(root / "x" / "b.wav")
    import_folder(root, corpus)
    write_sound(root / "x" / "a.wav")
    write_sound(root / "c.wav")

    first = import_folder(root, corpus, append=True)
    second = import_folder(root, corpus, append=True)

    assert [s["path"] for s in rs.open(corpus)] == ["x/b.wav", "c.wav", "x/a.wav"]
    assert (first.files, first.already) == (2, 1)
    assert (second.files, second.already, second.version) == (0, 3, first.version)


def test_append_goes_on_within_a_text_file(tmp_path):
    path, corpus = tmp_path / "log.txt", tmp_path / "corpus"
    path.write_text("a\nb\n")
    import_folder(path, corpus)
    path.write_text("a\nb\nc\nd\n")
    import_folder(path, corpus, append=True)
    store = rs.open(corpus)
    assert [(s["text"], s["line"]) for s in store] == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]


def test_append_makes_a_corpus_that_is_not_there_or_died_while_it_was_made(tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    import_folder(tmp_path / "a.txt", tmp_path / "new", append=True)
    for name in ("versions", "segments"):
        (tmp_path / "unborn" / name).mkdir(parents=True)
    import_folder(tmp_path / "a.txt", tmp_path / "unborn", append=True)
    assert len(rs.open(tmp_path / "new")) == len(rs.open(tmp_path / "unborn")) == 1


def test_narrow_sounds_append_to_a_wide_corpus_and_not_the_reverse(tmp_path):
    corpus = tmp_path / "corpus"
    write_sound(tmp_path / "one" / "wide.wav", subtype="PCM_24")
    narrow = write_sound(tmp_path / "two" / "narrow.wav")
    write_sound(tmp_path / "three" / "wider.wav", subtype="FLOAT")
    write_sound(tmp_path / "four" / "stereo.wav", channels=2)
    import_folder(tmp_path / "one", corpus)
    import_folder(tmp_path / "two", corpus, append=True)
    store = rs.open(corpus)
    np.testing.assert_array_equal(store["audio"][1], soundfile.read(narrow, dtype="int32")[0])
    for folder in ("three", "four"):
        with pytest.raises(rs.SchemaError, match="int32"):
            import_folder(tmp_path / folder, corpus, append=True)
    assert rs.open(corpus).version == store.version


def test_append_of_another_kind_mode_or_per_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    write_picture(tmp_path / "p" / "a.png")
    import_folder(tmp_path / "a.txt", tmp_path / "lines")
    import_folder(tmp_path / "p", tmp_path / "pictures")
    with pytest.raises(rs.SchemaError, match="text, path, line"):
        import_folder(tmp_path / "p", tmp_path / "lines", append=True)
    (tmp_path / "b.txt").write_text("b")
    write_picture(tmp_path / "p" / "b.png")
    with pytest.raises(rs.SchemaError, match="line"):
        import_folder(tmp_path / "b.txt", tmp_path / "lines", append=True, per="file")
    with pytest.raises(rs.SchemaError, match="--mode RGB"):
        import_folder(tmp_path / "p", tmp_path / "pictures", append=True, mode="L")


def test_auto_takes_the_kind_with_most_files_and_says_what_it_leaves(tmp_path):
    for i in range(3):
        write_picture(tmp_path / "in" / f"{i}.png")
    write_sound(tmp_path / "in" / "a.wav")
    notes = []

    class Noted(Watcher):
        def note(self, message):
            notes.append(message)

    report = import_folder(tmp_path / "in", tmp_path / "corpus", watcher=Noted())
    assert (report.kind, report.files) == ("image", 3)
    assert notes == ["image files are imported; 1 audio files are left out"]


def test_suffixes_replace_the_usual_ones(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.trn").write_text("one\n")
    (tmp_path / "in" / "b.txt").write_text("two\n")
    import_folder(tmp_path / "in", tmp_path / "corpus", kind="text", suffixes=["trn"])
    assert rs.open(tmp_path / "corpus")["text"][:] == ["one"]


def test_a_corpus_inside_the_folder_is_no_part_of_it(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    for _ in range(2):
        import_folder(tmp_path, tmp_path / "corpus", suffixes=["txt", "json"], kind="text",
                      append=True)  # fmt: skip
    assert rs.open(tmp_path / "corpus")["path"][:] == ["a.txt"]


def test_links_to_files_are_followed_and_loops_of_folders_are_not(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere.txt").write_text("one\n")
    (tmp_path / "in" / "sub" / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
    files, skipped = find_files(tmp_path / "in", {".txt"})
    assert [file.name for file in files] == ["sub/link.txt"] and not skipped


def test_a_name_that_is_not_utf8_is_skipped(tmp_path):
    (tmp_path / "good.txt").write_text("one\n")
    (tmp_path / os.fsdecode(b"b\xff.txt")).write_text("two\n")
    report = import_folder(tmp_path, tmp_path / "corpus")
    assert [skipped.reason for skipped in report.skipped] == ["its name is not UTF-8"]


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (rs.UsageError, {"kind": "video"}),
        (rs.UsageError, {"kind": "image", "mode": "CMYK"}),
        (rs.UsageError, {"kind": "text", "per": "word"}),
        (rs.UsageError, {"commit_every": "many"}),
        (rs.UsageError, {"commit_every": 0}),
        (rs.UsageError, {"kind": "image"}),
    ],
)
def test_mistakes_are_named_before_anything_is_made(tmp_path, error, options):
    (tmp_path / "a.txt").write_text("one\n")
    if options == {"kind": "image", "mode": "CMYK"}:
        write_picture(tmp_path / "a.png")
    with pytest.raises(error):
        import_folder(tmp_path, tmp_path / "corpus", **options)
    assert not (tmp_path / "corpus").exists()


def test_an_existing_corpus_is_refused_without_append(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    import_folder(tmp_path / "a.txt", tmp_path / "corpus")
    with pytest.raises(rs.ConflictError, match="--append"):
        import_folder(tmp_path / "a.txt", tmp_path / "corpus")


def test_nothing_readable_at_all_is_a_mistake(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(rs.UsageError, match="none of its 1 audio files"):
        import_folder(tmp_path, tmp_path / "corpus")
    with pytest.raises(rs.NotAStoreError):
        import_folder(tmp_path / "absent", tmp_path / "corpus")


def test_a_watcher_stops_it_and_what_is_whole_stays(tmp_path):
    root, corpus = tmp_path / "in", tmp_path / "corpus"
    for i in range(20):
        write_sound(root / f"{i:02}.wav", frames=i)

    class StopAt(Watcher):
        done = 0
        phase = ""

        def begin(self, phase, files, nbytes):
            self.phase, self.done = phase, 0

        def advance(self, files, nbytes):
            self.done += files

        def stopping(self):
            return self.phase == "import" and self.done >= 5

    report = import_folder(root, corpus, watcher=StopAt())
    assert report.stopped and 5 <= len(rs.open(corpus)) < 20
    import_folder(root, corpus, append=True)
    assert rs.open(corpus)["path"][:] == [f"{i:02}.wav" for i in range(20)]


def test_a_failing_disk_leaves_the_last_commit(tmp_path, monkeypatch):
    corpus = tmp_path / "corpus"
    root = Path(tmp_path / "in")
    for i in range(3):
        write_sound(root / f"{i}.wav")
    import_folder(root, corpus)
    write_sound(root / "4.wav")
    before = rs.open(corpus).version

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raggedstore.store.writer.Writer.extend", fail)
    with pytest.raises(OSError, match="No space"):
        import_folder(root, corpus, append=True)
    assert rs.open(corpus).version == before and rs.open(corpus).verify().ok


def test_where_nothing_reads_the_error_says_why(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(b"\xff")

    with pytest.raises(rs.UsageError, match=r"none of its 1 text files.*a\.txt: not UTF-8"):
        import_folder(tmp_path / "in", tmp_path / "corpus")


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(
    tmp_path, monkeypatch, call
):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(b"text")
    real = getattr(os, call)

    def failing(path, *rest, **options):
        if str(path) == str(tmp_path / "in"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, *rest, **options)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(rs.StorageError, match=r"in: could not.*Input/output error"):
        import_folder(tmp_path / "in", tmp_path / "corpus", kind="text")


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4"])
def test_pictures_of_more_than_eight_bits_are_skipped_and_not_saturated(
    tmp_path: Path, dtype: str
) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.linspace(0, 60_000, 64).reshape(8, 8).astype(dtype)
    PIL.Image.fromarray(pixels).save(tmp_path / "in/deep.tiff")
    PIL.Image.fromarray(np.zeros((8, 8), "u1")).save(tmp_path / "in/plain.png")
    report = import_folder(tmp_path / "in", tmp_path / "corpus")
    assert len(rs.open(tmp_path / "corpus")) == 1
    assert "more than 8 bits" in str(report.skipped)


def test_lines_lost_to_a_repair_come_back_and_no_line_twice(tmp_path):
    lines = [f"line {i}" for i in range(1, 9001)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("\n".join(lines))
    import_folder(tmp_path / "in", tmp_path / "corpus", commit_every="20kB")
    segments = sorted((tmp_path / "corpus" / "segments").glob("*.h5"), key=os.path.getmtime)
    assert len(segments) > 2
    segments[1].unlink()
    rs.open(tmp_path / "corpus", mode="a").repair()
    assert 0 < len(rs.open(tmp_path / "corpus")) < len(lines)

    for _ in range(2):
        import_folder(tmp_path / "in", tmp_path / "corpus", append=True)

    store = rs.open(tmp_path / "corpus")
    assert sorted(store["line"][:]) == list(range(1, len(lines) + 1))
    assert all(s["text"] == lines[int(s["line"]) - 1] for s in store)


def test_lines_added_to_a_file_are_taken_and_those_of_another_file_of_its_name_are_not(tmp_path):
    days = {"mon": "1\n2\n", "grown": "1\n2\n3\n", "other": "a\nb\nc\nd\n", "cut": "1"}
    for day, text in days.items():
        (tmp_path / day).mkdir()
        (tmp_path / day / "notes.txt").write_text(text)
    import_folder(tmp_path / "mon", tmp_path / "corpus")

    assert import_folder(tmp_path / "grown", tmp_path / "corpus", append=True).samples == 1
    for day in "other", "cut":
        with pytest.raises(rs.UsageError, match="line 3 is not what the corpus holds"):
            import_folder(tmp_path / day, tmp_path / "corpus", append=True)

    assert rs.open(tmp_path / "corpus")["text"][:] == ["1", "2", "3"]


def test_suffixes_of_no_kind_are_taken_with_those_of_one(tmp_path):
    for name in "a.wav", "b.wav", "c.dat":
        write_sound(tmp_path / "in" / "x.wav").rename(tmp_path / "in" / name)

    report = import_folder(tmp_path / "in", tmp_path / "corpus", suffixes=[".wav", "dat"])

    assert (report.kind, report.files) == ("audio", 3)
    with pytest.raises(rs.UsageError, match="list"):
        import_folder(tmp_path / "in", tmp_path / "other", suffixes=".wav")
    (tmp_path / "none").mkdir()
    with pytest.raises(rs.UsageError, match="audio, image or text"):
        import_folder(tmp_path / "none", tmp_path / "other")


@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU", "FLAC", "W64", "RF64", "CAF"])
def test_recordings_cut_off_are_skipped_and_streamed_ones_are_not(tmp_path, form):
    root, suffix = tmp_path / "in", {"RF64": ".wav"}.get(form, "." + form.lower())
    root.mkdir()
    values = rng.integers(-9999, 9999, 5000).astype("int16")
    soundfile.write(root / f"whole{suffix}", values, 8000, format=form, subtype="PCM_16")
    whole = (root / f"whole{suffix}").read_bytes()
    (root / f"cut{suffix}").write_bytes(whole[: len(whole) // 2])
    if form == "WAV":  # as programs write that send it through a pipe
        size = whole.index(b"data") + 4
        streamed = whole[:size] + b"\xff\xff\xff\xff" + whole[size + 4 :]
        (root / "streamed.wav").write_bytes(streamed)

    report = import_folder(root, tmp_path / "corpus")

    assert names(report) == [f"cut{suffix}"]
    assert all((s["audio"] == values).all() for s in rs.open(tmp_path / "corpus"))


def test_a_folder_whose_name_is_not_utf8_can_be_imported(tmp_path):
    root = tmp_path / os.fsdecode(b"d\xff")
    write_sound(tmp_path / "a.wav", frames=10)
    root.mkdir()
    (tmp_path / "a.wav").rename(root / "a.wav")

    assert import_folder(root, tmp_path / "corpus").files == 1
