"""Files: whole or not there, and any damage is one line."""

import json
import threading

import pytest
import safetensors.torch
import torch
from damaging import mutations

from lrc.utils import files
from lrc.utils.errors import InputError
from lrc.utils.files import replacing, seal, write_text

VALUE = {"eps": 8 / 255, "names": ["cat", "dog"], "loss": float("inf"), "sha256": "f" * 64, "nested": {"digest": "x"}}
ROWS = [{"epoch": 1, "loss": 0.25}, {"epoch": 2, "loss": 0.125, "stopped": None}]
TENSORS = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(7), "empty": torch.zeros(0, 3, dtype=torch.uint8)}
KINDS = {  # how it is written, how it is read, what
    "json": (files.write_json, files.read_json, VALUE),
    "lines": (files.write_lines, files.read_lines, ROWS),
    "bytes": (files.write_bytes, files.read_bytes, bytes(range(256)) * 5),
    "tensors": (files.save_tensors, files.load_tensors, TENSORS),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def plain(value):
    """The same, fit for ==."""
    if isinstance(value, dict):
        return {k: (v.dtype, v.tolist()) if isinstance(v, torch.Tensor) else v for k, v in value.items()}
    return value


def refused(read, path, **options):
    with pytest.raises(InputError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert str(path) in message and "remove it" in message and "\n" not in message
    return message


@each_kind
def test_what_was_written_is_read(tmp_path, kind):
    save, read, value = KINDS[kind]
    save(tmp_path / "new" / "file", value)
    assert plain(read(tmp_path / "new" / "file")) == plain(value)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@each_kind
def test_damage_of_any_kind_is_one_line(tmp_path, kind):
    save, read, value = KINDS[kind]
    save(path := tmp_path / "file", value)
    for _ in mutations(path, kind):
        refused(read, path)
    assert plain(read(path)) == plain(value)


@each_kind
@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{}", b"[" * 100_000, b"\xff" * 300, b'{"digest": "sha256:' + b"0" * 64 + b'"}\n', b"PK\3\4"],
)
def test_foreign_files_are_one_line(tmp_path, kind, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    refused(KINDS[kind][1], path)


@each_kind
def test_files_of_another_kind_missing_files_and_folders_are_one_line(tmp_path, kind):
    for other, (save, _, value) in KINDS.items():
        if other != kind and {kind, other} not in ({"json", "lines"}, {"bytes", "json"}, {"bytes", "lines"}):
            save(tmp_path / other, value)
            refused(KINDS[kind][1], tmp_path / other)
    refused(KINDS[kind][1], tmp_path / "missing")
    refused(KINDS[kind][1], tmp_path)


def test_files_without_a_digest_where_the_caller_says_so(tmp_path):
    path = tmp_path / "file"
    for text, read, expected in (
        (json.dumps(VALUE), files.read_json, VALUE),
        ("".join(json.dumps(row) + "\n" for row in ROWS), files.read_lines, ROWS),
    ):
        path.write_text(text)
        assert "has no digest" in refused(read, path)
        assert read(path, unsealed=True) == expected
    safetensors.torch.save_file(TENSORS, path)
    assert "has no digest" in refused(files.load_tensors, path)
    assert plain(files.load_tensors(path, unsealed=True)) == plain(TENSORS)


@pytest.mark.parametrize("kind", ["json", "lines", "tensors"])
def test_a_wrong_digest_is_refused_even_where_none_is_needed(tmp_path, kind):
    save, read, value = KINDS[kind]
    save(path := tmp_path / "file", value)
    whole = path.read_bytes()
    place = whole.index(b"sha256:") + 8
    path.write_bytes(whole[:place] + (b"1" if whole[place : place + 1] != b"1" else b"2") + whole[place + 1 :])
    assert "its digest is another" in refused(read, path, unsealed=True)


def test_other_programs_still_read_them(tmp_path):
    files.write_json(tmp_path / "a", VALUE)
    files.write_lines(tmp_path / "b", ROWS)
    files.save_tensors(tmp_path / "c", TENSORS, {"who": "I"})
    assert json.loads((tmp_path / "a").read_text()).keys() - VALUE.keys() == {"digest"}
    assert [json.loads(line)["loss"] for line in (tmp_path / "b").read_text().splitlines()] == [0.25, 0.125]
    assert plain(safetensors.torch.load_file(tmp_path / "c")) == plain(TENSORS)
    assert files.tensor_metadata(tmp_path / "c") == {"who": "I"}


def test_tied_and_strided_tensors_are_kept(tmp_path):
    w = torch.arange(24.0).view(2, 3, 4)
    tensors = {"a": w, "b": w, "c": w[1], "d": w.permute(2, 0, 1), "e": torch.nn.Parameter(w)}
    files.save_tensors(tmp_path / "file", tensors)
    loaded = files.load_tensors(tmp_path / "file")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_no_rows(tmp_path):
    files.write_lines(tmp_path / "file", [])
    assert files.read_lines(tmp_path / "file") == []


def test_an_entry_of_the_name_of_ours_is_refused(tmp_path):
    with pytest.raises(ValueError, match="digest"):
        files.write_json(tmp_path / "file", {"digest": 1})
    (tmp_path / "file").write_text("no place")
    with pytest.raises(ValueError, match="no place"):
        seal(tmp_path / "file")


def test_what_was_there_stays_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(RuntimeError), replacing(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and [*tmp_path.iterdir()] == [path]


def test_symbolic_links_are_not_followed(tmp_path, monkeypatch):
    """Neither one in the place of the unfinished file, nor one in the place of the file itself."""
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("mine")
    monkeypatch.setattr("lrc.utils.files.secrets.token_hex", lambda n: "guessed")
    (tmp_path / "file.guessed.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text(path, "x")
    (tmp_path / "file.guessed.part").unlink()
    path.symlink_to(victim)
    write_text(path, "x")
    assert victim.read_text() == "mine" and path.read_text() == "x" and not path.is_symlink()


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"
    values = [{"who": i, "what": [i] * 2000} for i in range(8)]
    threads = [threading.Thread(target=files.write_json, args=(path, value)) for value in values for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.read_json(path) in values and [*tmp_path.iterdir()] == [path]
