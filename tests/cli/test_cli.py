"""The command: what each subcommand prints and the status it ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
import soundfile

import raggedstore as rs
from raggedstore import kernel
from raggedstore.cli import cli

rng = np.random.default_rng(0)
LENGTHS = [5, 0, 17, 100]
SOUNDS = [rng.integers(-(2**15), 2**15, n, np.int16) for n in LENGTHS]
PICTURES = [rng.integers(0, 256, (4 + i, 3, 3), np.uint8) for i in range(4)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus"
    schema = {
        "audio": rs.Field("int16", (None,)),
        "image": rs.Field("uint8", (None, None, 3)),
        "text": rs.Field("str"),
        "sample_rate": rs.Field("int32"),
    }
    rs.create(path, schema, metadata={"source": "tests"}).close()
    with rs.open(path, mode="a") as store, store.writer() as writer:
        for i, (sound, picture) in enumerate(zip(SOUNDS, PICTURES, strict=True)):
            text = f"number {i}\tand \x1b[31mred[/red]"
            writer.append({"audio": sound, "image": picture, "text": text, "sample_rate": 8000})
            if i == 1:
                writer.commit()
    return path


def test_info_says_what_the_store_is(corpus, run):
    status, out, err = run("info", corpus)
    assert (status, err) == (0, "")
    assert "samples            4" in out
    assert "field image        uint8 (ragged, ragged, 3)" in out
    assert "metadata source    tests" in out
    facts = json.loads(run("info", corpus, "--json")[1])
    assert facts["version"] == 2 and facts["segments"] == 2 and facts["samples"] == 4
    assert facts["fields"]["audio"] == {
        "dtype": "int16",
        "shape": [None],
        "compression": "balanced, to be chosen when there is more data",
    }


def test_info_says_how_a_single_file_is_compressed(run, tmp_path):
    profile = rs.Compression("zstd", 1, ("shuffle",), block_bytes=2**13)
    with rs.create(tmp_path / "store", {"x": rs.Field("i4", (None,))}, profile=profile) as store:
        with store.writer() as writer:
            writer.extend({"x": np.arange(5000, dtype="i4")} for _ in range(40))
        store.export(tmp_path / "x.h5")
    facts = json.loads(run("info", tmp_path / "x.h5", "--json")[1])
    assert facts["fields"]["x"]["compression"] == "zstd + shuffle, blocks of 8.2 kB"
    assert "zstd + shuffle" in run("info", tmp_path / "x.h5")[1]


def test_info_head_ls_show_and_stats_take_a_single_file(corpus, run, tmp_path):
    out_file = tmp_path / "one.h5"
    assert run("export", corpus, out_file)[0] == 0
    for command in (["info"], ["head"], ["ls"], ["stats"], ["info", "--json"]):
        status, out, err = run(command[0], out_file, *command[1:])
        assert (status, err) == (0, "") and "audio" in out
    assert run("show", out_file, 0)[0] == 0
    status, _, err = run("log", out_file)
    assert status == 2 and "single file" in err


def test_ls_prints_a_line_a_sample_and_nothing_that_steers_a_terminal(corpus, run):
    status, out, _ = run("ls", corpus)
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == "index\taudio\timage\ttext\tsample_rate"
    assert lines[3] == "2\t17\t6×3×3\tnumber 2\\tand \\x1b[31mred[/red]\t8000"
    assert len(lines) == 5


def test_ls_of_arrays_alone_reads_only_shapes(tmp_path, run):
    store = rs.create(tmp_path / "c", {"x": rs.Field("float32", (None, 2))})
    with store.writer() as writer:
        writer.append({"x": np.zeros((3, 2), np.float32)})
    store.close()
    assert run("ls", tmp_path / "c")[1] == "index\tx\n0\t3×2\n"


def test_head_shows_the_first_samples(corpus, run):
    status, out, _ = run("head", corpus, "-n", 2)
    assert status == 0 and len(out.splitlines()) == 3
    assert f"{SOUNDS[0].min()} … {SOUNDS[0].max()}" in out
    assert "\x1b" not in out and "[/red]" in out
    assert len(run("head", corpus)[1].splitlines()) == 5


def test_show_counts_from_the_end_and_keeps_to_a_field(corpus, run):
    status, out, _ = run("show", corpus, -3, "--field", "text")
    assert (status, out) == (0, "text: str\n  number 1\\tand \\x1b[31mred[/red]\n")
    assert "audio: int16 (100,)" in run("show", corpus, -1)[1]


def test_show_saves_files_that_read_back_equal(corpus, run, tmp_path):
    for name in ("a.wav", "a.flac", "a.png", "a.txt", "a.npy", "b.npy"):
        field = ["--field", "image"] if name == "b.npy" else []
        status, _, err = run("show", corpus, 2, "--save", tmp_path / name, *field)
        assert (status, err) == (0, ""), name
    for name in ("a.wav", "a.flac"):
        values, rate = soundfile.read(tmp_path / name, dtype="int16")
        np.testing.assert_array_equal(values, SOUNDS[2])
        assert rate == 8000
    with PIL.Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), PICTURES[2])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), SOUNDS[2])
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), PICTURES[2])
    assert (tmp_path / "a.txt").read_text() == "number 2\tand \x1b[31mred[/red]"


@pytest.mark.parametrize("dtype", [">i2", ">f4", "<i4"])
def test_show_saves_sound_of_any_byte_order(run, tmp_path, dtype):
    sound = (np.arange(500) * 60 - 9000).astype(dtype)
    store = rs.create(tmp_path / "store", {"audio": rs.Field(dtype, (None,))})
    with store, store.writer() as writer:
        writer.append({"audio": sound})
    target = tmp_path / "a.wav"
    assert run("show", tmp_path / "store", 0, "--save", target, "--rate", 8000)[0] == 0
    np.testing.assert_array_equal(soundfile.read(target, dtype=sound.dtype.name)[0], sound)


def test_show_saves_sound_below_a_name_that_is_not_utf8(corpus, run, tmp_path):
    folder = tmp_path / os.fsdecode(b"d\xff")
    folder.mkdir()
    assert run("show", corpus, 2, "--save", folder / "a.wav")[0] == 0
    with open(folder / "a.wav", "rb") as file:
        np.testing.assert_array_equal(soundfile.read(file, dtype="int16")[0], SOUNDS[2])
    status, _, err = run("show", corpus, 2, "--save", tmp_path / "absent" / "a.wav")
    assert status and "No such file" in err


@pytest.mark.parametrize("name", ["a.flac", "a.webp", "a.png"])
def test_show_refuses_to_save_what_a_format_cannot_hold_nothing_of(run, tmp_path, name):
    fields = {"audio": rs.Field("int16", (None,)), "image": rs.Field("uint8", (None, None, 3))}
    with rs.create(tmp_path / "store", fields) as store, store.writer() as writer:
        writer.append({"audio": [], "image": np.zeros((0, 0, 3), "u1")})
    target = tmp_path / name
    status, _, err = run("show", tmp_path / "store", 0, "--save", target, "--rate", 8000)
    assert status and not target.exists() and len(err.splitlines()) == 1
    assert run("show", tmp_path / "store", 0, "--save", tmp_path / "a.wav", "--rate", 8000)[0] == 0


def test_show_saves_under_the_name_it_was_given_or_leaves_what_is_there(run, tmp_path):
    store = rs.create(tmp_path / "store", {"image": rs.Field("uint8", (None, None, 4))})
    with store, store.writer() as writer:
        writer.append({"image": np.zeros((3, 2, 4), "uint8")})
    assert run("show", tmp_path / "store", 0, "--save", tmp_path / "A.NPY")[0] == 0
    assert np.load(tmp_path / "A.NPY").shape == (3, 2, 4)
    (tmp_path / "keep.jpg").write_bytes(b"mine")

    status, _, err = run("show", tmp_path / "store", 0, "--save", tmp_path / "keep.jpg")

    assert (status, "RGBA" in err) == (2, True)
    assert (tmp_path / "keep.jpg").read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["A.NPY", "keep.jpg", "store"]


def test_show_saves_into_what_is_there_as_it_is(corpus, run, tmp_path):
    private, real, link = (tmp_path / name for name in ("p.txt", "r.txt", "l.txt"))
    private.write_text("mine")
    private.chmod(0o600)
    real.write_text("before")
    link.symlink_to(real)
    pipe, long = tmp_path / "pipe.txt", tmp_path / ("a" * 250 + ".txt")
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        for target in (private, link, pipe, long):
            assert run("show", corpus, 2, "--save", target)[0] == 0
        text = reader.stdout.read()

    assert text.startswith(b"number 2") and text == real.read_bytes() == long.read_bytes()
    assert private.stat().st_mode & 0o777 == 0o600 and link.is_symlink()


def test_what_the_output_cannot_show_is_escaped(corpus):
    for command in ("head", "info", "ls"):
        done = subprocess.run(
            [sys.executable, "-m", "raggedstore", command, corpus],
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_stats_counts_without_reading_data(corpus, run):
    status, out, _ = run("stats", corpus)
    row = next(line for line in out.splitlines() if line.startswith("audio[0]")).split()
    assert status == 0
    assert row == ["audio[0]", "values", "4", "122", "30.5", "0", "0", "0", "5", "17", "100", "100"]
    lengths = json.loads(run("stats", corpus, "--json")[1])["lengths"]
    assert [each["field"] for each in lengths] == ["audio", "image", "image", "text"]
    assert lengths[0]["quantiles"]["0.5"] == 5 and lengths[1]["total"] == 4 + 5 + 6 + 7


def test_stats_draws_a_histogram(corpus, run, tmp_path):
    status, _, err = run("stats", corpus, "--plot", tmp_path / "lengths.png")
    assert (status, err) == (0, "")
    with PIL.Image.open(tmp_path / "lengths.png") as picture:
        assert picture.format == "PNG" and picture.width > 300


def test_stats_of_an_empty_store(tmp_path, run):
    rs.create(tmp_path / "c", {"x": rs.Field("int16", (None,))}).close()
    assert run("stats", tmp_path / "c")[0] == 0
    lengths = json.loads(run("stats", tmp_path / "c", "--json")[1])["lengths"]
    assert lengths[0]["count"] == 0 and lengths[0]["max"] is None
    assert run("stats", tmp_path / "c", "--plot", tmp_path / "l.png")[0] == 0


def test_log_lists_versions_newest_first(corpus, run):
    status, out, _ = run("log", corpus)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["version", "2", "1", "0"]
    entries = json.loads(run("log", corpus, "--json")[1])
    assert [entry["samples"] for entry in entries] == [4, 2, 0]


def test_verify_is_content_with_a_whole_store(corpus, run):
    status, out, err = run("verify", corpus)
    assert (status, err) == (0, "") and "no faults" in out
    assert json.loads(run("verify", corpus, "--json")[1])["ok"] is True


def damage(path):
    """Flip a bit in the first chunk of audio."""
    with h5py.File(path) as h5:
        offset = h5["audio/data"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 120] ^= 1
    path.write_bytes(data)


def test_verify_takes_a_single_file(corpus, run, tmp_path):
    file = tmp_path / "one.h5"
    assert run("export", corpus, file)[0] == 0
    status, out, err = run("verify", file)
    assert (status, err) == (0, "") and "no faults in 4 samples" in out
    damage(file)
    status, out, err = run("verify", file)
    assert status == 1 and "fault: segment" in err and str(file) in err


def test_verify_names_what_is_damaged_and_ends_with_1(corpus, run):
    segment = max((corpus / "segments").glob("*.h5"), key=lambda p: p.stat().st_mtime_ns)
    damage(segment)
    status, out, err = run("verify", corpus)
    assert status == 1 and "fault" in out
    assert all(line.startswith("raggedstore: fault: ") for line in err.splitlines())
    assert "audio" in err
    report = json.loads(run("verify", corpus, "--json")[1])
    assert report["ok"] is False and report["faults"][0]["field"] == "audio"


def test_a_damaged_manifest_ends_with_1_and_one_line(corpus, run):
    newest = max((corpus / "versions").glob("*.json"))
    newest.write_bytes(newest.read_bytes().replace(b"append", b"appenD"))
    status, out, err = run("info", corpus)
    assert (status, out) == (1, "")
    assert err.startswith("raggedstore: error: ") and err.count("\n") == 1


@pytest.mark.parametrize("version", [1, 2])
def test_log_lists_what_can_be_read_and_names_what_cannot(corpus, run, version):
    path = corpus / "versions" / f"{version:020d}.json"
    path.write_bytes(path.read_bytes().replace(b"append", b"appenD"))
    status, out, err = run("log", corpus)
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["2", "1", "0"]
    assert next(line for line in out.splitlines() if "damaged" in line).split()[0] == f"{version}"
    assert err.startswith("raggedstore: fault: ") and err.count("\n") == 1 and path.name in err
    lines = json.loads(run("log", corpus, "--json")[1])
    assert [bool(line["damage"]) for line in lines] == [
        line["version"] == version for line in lines
    ]


def test_vacuum_keeps_what_a_damaged_manifest_may_need(corpus, run):
    path = max((corpus / "versions").glob("*.json"))
    path.write_bytes(path.read_bytes().replace(b"append", b"appenD"))
    before = sorted((corpus / "segments").iterdir())
    status, _, err = run("vacuum", corpus, "--keep", 1)
    assert status == 1 and path.name in err and err.count("\n") == 1
    assert sorted((corpus / "segments").iterdir()) == before
    assert len(list((corpus / "versions").glob("*.json"))) == 2


def test_compact_and_vacuum_leave_one_segment_and_one_version(corpus, run):
    assert "version 3, 1 segments" in run("compact", corpus)[1]
    assert "nothing to join" in run("compact", corpus)[1]
    status, out, _ = run("vacuum", corpus, "--keep", 1)
    assert status == 0 and "removed" in out
    assert len(list((corpus / "segments").glob("*.h5"))) == 1
    with rs.open(corpus) as store:
        assert store.versions() == [3]
        np.testing.assert_array_equal(store["audio"][3], SOUNDS[3])


def test_export_writes_one_file_and_overwrites_none(corpus, run, tmp_path):
    out_file = tmp_path / "out.h5"
    assert run("export", corpus, out_file)[0] == 0
    with h5py.File(out_file) as h5:
        assert "audio" in h5
    before = out_file.read_bytes()
    status, _, err = run("export", corpus, out_file)
    assert status == 2 and str(out_file) in err
    assert out_file.read_bytes() == before


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_are_no_errors(corpus, closed):
    command = f'"{sys.executable}" -m raggedstore info "{corpus}" {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


BAD_USAGE = [
    ["nonsense"],
    ["info"],
    ["info", "{absent}"],
    ["info", "{corpus}", "--nonsense"],
    ["show", "{corpus}", "4"],
    ["show", "{corpus}", "-5"],
    ["show", "{corpus}", "x"],
    ["show", "{corpus}", "0", "--field", "nonsense"],
    ["show", "{corpus}", "0", "--save", "{absent}.xyz"],
    ["show", "{corpus}", "0", "--field", "text", "--save", "{absent}.png"],
    ["show", "{corpus}", "0", "--field", "audio", "--save", "{absent}/a.npy"],
    ["show", "{corpus}", "0", "--field", "audio", "--save", "{absent}.wav", "--rate", "9" * 11],
    ["head", "{corpus}", "-n", "-1"],
    ["stats", "{corpus}", "--plot", "{absent}.pdf"],
    ["vacuum", "{corpus}", "--keep", "0"],
    ["verify", "{absent}"],
    ["export", "{corpus}", "{absent}.parquet"],
    ["export", "{corpus}", "{absent}.arrow"],
    ["export", "{corpus}", "{absent}"],
    ["import", "{absent}", "{corpus}"],
    ["import", "{folder}", "{corpus}"],
    ["import", "{folder}", "{corpus}", "--append"],
    ["import", "{folder}", "{absent}", "--kind", "audio"],
    ["import", "{folder}", "{absent}", "--commit-every", "often"],
]


@pytest.mark.parametrize("arguments", BAD_USAGE, ids=" ".join)
def test_bad_usage_ends_with_2_and_one_line_on_stderr(corpus, run, tmp_path, arguments):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    places = {"corpus": corpus, "absent": tmp_path / "absent", "folder": folder}
    status, out, err = run(*(argument.format(**places) for argument in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("raggedstore: error: ") and err.count("\n") == 1
    assert not (tmp_path / "absent").exists()


def test_import_says_what_it_did_and_names_what_it_skipped(run, tmp_path):
    folder, corpus = tmp_path / "folder", tmp_path / "corpus"
    folder.mkdir()
    for i, sound in enumerate(SOUNDS):
        soundfile.write(folder / f"{i}.wav", sound, 16_000)
    (folder / "bad\x1b.wav").write_bytes(b"no sound")
    status, out, err = run("import", folder, corpus)
    assert status == 0
    assert out.startswith("4 files (") and "1 not readable and skipped" in out
    assert err.startswith("raggedstore: skipped bad\\x1b.wav: ") and err.count("\n") == 1
    status, out, _ = run("import", folder, corpus, "--append", "--kind", "audio")
    assert status == 0 and "4 there already" in out
    with rs.open(corpus) as store:
        for got, sound in zip(store["audio"][:], SOUNDS, strict=True):
            np.testing.assert_array_equal(got, sound)


def test_a_missing_optional_package_is_named_with_its_extra(corpus, run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, _, err = run("stats", corpus, "--plot", tmp_path / "l.png")
    assert status == 2 and "raggedstore[plot]" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", [None, *sorted(cli.commands)])
def test_help_has_an_example_of_each_command(run, name):
    status, out, _ = run(*([name] if name else []), "--help")
    assert status == 0 and f"  raggedstore {name or 'import'} " in out
    assert "Example" in out and max(map(len, out.splitlines())) <= 80


def test_the_command_starts_without_the_packages_that_it_may_not_need():
    heavy = ["soundfile", "PIL", "matplotlib", "torch"]
    code = f"import sys, raggedstore.cli; print([m for m in {heavy} if m in sys.modules])"
    root = Path(rs.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_reader_that_has_enough_of_ls_is_no_error(tmp_path):
    store = rs.create(tmp_path / "c", {"text": rs.Field("str")})
    with store.writer() as writer:
        writer.extend({"text": "x" * 100} for _ in range(5000))
    store.close()
    root = Path(rs.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-m", "raggedstore", "ls", str(tmp_path / "c")],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_the_version_says_whether_the_kernel_is_compiled(run):
    status, said, _ = run("--version")
    assert status == 0 and said.startswith(f"raggedstore {rs.__version__}, with")
    assert ("without" in said) is not kernel.is_there()
