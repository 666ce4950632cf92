"""The same labelled images, handed over in every way that people have them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

import lrc
from lrc import Images, InputError
from lrc.data import as_images, grey, named

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randint(0, 256, (12, 3, 8, 8), generator=GENERATOR).byte()
Y = torch.arange(12) % 3
NAMES = ("a", "b", "c")
LAST = X.permute(0, 2, 3, 1).numpy()


def pngs(folder, mode="RGB"):
    for i, (image, y) in enumerate(zip(LAST, Y.tolist(), strict=True)):
        (folder / NAMES[y]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert(mode).save(folder / NAMES[y] / f"{i:02}.png")
    return folder


def encoded():
    files = []
    for image in LAST:
        Image.fromarray(image).save(file := io.BytesIO(), "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    return pa.table({"img": files, "label": Y.numpy()})


FEATURES = {"img": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}


def arrow(folder):
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
        table = encoded()
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (X.float() / 255, Y),
        (X.numpy(), Y.numpy()),
        (LAST, Y.tolist()),
        (LAST / np.float32(255), Y[:, None]),
        DataLoader(TensorDataset(X.float() / 255, Y), batch_size=5),
        TensorDataset(X, Y),
        [{"img": Image.fromarray(x), "label": int(y)} for x, y in zip(LAST, Y, strict=True)],
    ],
)
def test_arrays_loaders_and_datasets_give_the_same_images(data):
    found = as_images(data)
    assert torch.equal(found.x, X) and torch.equal(found.y, Y) and found.classes == ("0", "1", "2")


def test_files_and_folders_give_the_same_images(tmp_path):
    pngs(tmp_path / "val")
    pngs(tmp_path / "flat")
    arrow(tmp_path / "one")
    arrow(tmp_path / "parts" / "test")
    arrow(tmp_path / "parts" / "train")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    told = {b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()}
    table = encoded().replace_schema_metadata(told)
    pq.write_table(table, tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    np.savez(tmp_path / "a.npz", x=LAST, y=Y.numpy(), classes=np.array(NAMES))
    swapped = {"x_train": LAST[::-1], "y_train": Y.numpy()[::-1], "classes": np.array(NAMES)}
    np.savez(tmp_path / "keras.npz", **swapped, x_test=LAST, y_test=Y.numpy())
    (tmp_path / "npy").mkdir()
    for name, array in {"test_images": LAST, "test_labels": Y.numpy()[:, None], **swapped}.items():
        np.save(tmp_path / "npy" / f"{name}.npy", array)
    for place in ("one", "parts", "hub", "a.npz", "keras.npz", "npy"):
        found = named(str(tmp_path / place), "test")
        assert torch.equal(found.x, X) and torch.equal(found.y, Y) and found.classes == NAMES, place
    for place in (".", "flat"):
        found = (
            named(str(tmp_path / place), "test") if place == "flat" else as_images(ImageFolder(str(tmp_path / "val")))
        )
        assert len(found) == 12 and found.classes == NAMES
        assert {tuple(x.flatten().tolist()) for x, _ in found.read([slice(i, i + 1) for i in range(12)])} == {
            tuple(x.flatten().tolist()) for x in X
        }
    loaded = as_images(DataLoader(ImageFolder(str(tmp_path / "val"), ToTensor()), batch_size=4))
    assert loaded.classes == NAMES and torch.equal(loaded.x, X[Y.argsort(stable=True)])


@pytest.mark.parametrize("content", [b"", b"no arrays", np.array([{}, 1])])
@pytest.mark.parametrize("name", ["a.npz", "x.npy"])
def test_damaged_arrays_and_python_objects_are_refused(tmp_path, name, content):
    place = tmp_path / name
    if isinstance(content, bytes):
        place.write_bytes(content)
    else:
        np.savez(place, x=content, y=content) if name == "a.npz" else np.save(place, content)
    np.save(tmp_path / "y.npy", np.zeros(2, dtype=int))
    with pytest.raises(InputError, match="cannot be read"):
        named(str(place if name == "a.npz" else tmp_path), "test")


def test_pictures_of_several_sizes_need_one(tmp_path):
    table = encoded().to_pydict()
    Image.fromarray(LAST[0]).resize((5, 5)).save(file := io.BytesIO(), "PNG")
    table["img"][0] = {"bytes": file.getvalue(), "path": None}
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(table), tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="images of .*data differ in size: give the size they are brought to"):
        named(str(tmp_path), "test")
    assert named(str(tmp_path), "test", size=6).x.shape == (12, 3, 6, 6)


def test_images_of_one_channel(tmp_path):
    assert as_images((X[:, 0], Y)).x.shape == (12, 1, 8, 8)
    expected = (X.double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).round()
    assert (grey(as_images((X, Y))).x.double() - expected).abs().max() <= 1
    alike = X[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(grey(Images(alike, Y, NAMES)).x, X[:, :1])


def test_labels_may_leave_classes_out():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 7)).eval()
    report = lrc.evaluate(model, (X, Y), attacks="pgd", masking=False)
    assert report.classes == tuple("0123456")


@pytest.mark.parametrize(
    "data, says",
    [
        (3, "must be lrc.Images, not int"),
        ([1, 2, 3], "pairs of image and label"),
        ((X.float() / 127 - 1, Y), "undo any normalization"),
        ((X, Y.float()), "one integer an image"),
        ((X, Y[:5]), "expected int64"),
        ([{"pixels": 1}], "expected one of image, img"),
        (DataLoader(TensorDataset(X[:0], Y[:0])), "no images"),
        ("cifar11", "the nearest: cifar10"),
        ([(LAST[0], 0), (LAST[1][:4], 1)], "differ in size"),
    ],
)
def test_what_cannot_be_is_one_line(data, says):
    with pytest.raises(InputError) as error:
        as_images(data)
    assert says in str(error.value) and "\n" not in str(error.value)
